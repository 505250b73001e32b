"""Pages and numbers about a construction: its report, what a model would cost, accuracy against known phases."""
