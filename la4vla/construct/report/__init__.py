"""Pages and numbers about a construction: the report, the cost of a model, the accuracy against known phases."""
