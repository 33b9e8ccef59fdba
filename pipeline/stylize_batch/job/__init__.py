"""A job: its settings, its record under the output root, and the phases it goes through."""
