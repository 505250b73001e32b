"""Speed as ratios of two things in one run. Each file is a command: `python -m benchmarks.speed.throughput`."""
