"""Measurements and trials on the real thing: `python -m benchmarks.startup`, `python -m benchmarks.chaos`."""
