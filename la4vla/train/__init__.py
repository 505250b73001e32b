"""Training: one loop, two engines, checkpoints that resume anywhere. `python -m la4vla.train CONFIG key=value`."""
