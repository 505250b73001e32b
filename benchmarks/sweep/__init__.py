"""Checkpoints x protocols x perturbations as jobs, run here or on SLURM, and their tables."""
