"""Pages and figures of results: the report of a folder, learning curves, robustness, a sheet of perturbations."""
