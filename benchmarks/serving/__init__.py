"""Serving side by side with peers: the same model, record, machine and load. `python -m benchmarks.serving`."""
