"""The short version: every kind of fault once or twice. `python -m tests.faults` is the long one."""
