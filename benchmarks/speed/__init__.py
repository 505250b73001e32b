"""Measurements of speed, as ratios within one run. Commands: `python -m benchmarks.speed.throughput` and its
neighbours."""
