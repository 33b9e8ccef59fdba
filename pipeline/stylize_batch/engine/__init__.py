"""Who runs the workers: this process, or actors on Ray. Both offer the same `Engine`."""
