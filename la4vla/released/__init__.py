"""Checkpoints that others released: read into runs of ours, and written back. `la4vla import evo1`."""
