"""What `switchyard up` does: starts every process, watches it, ends it. `run.run_stack` is the door."""
