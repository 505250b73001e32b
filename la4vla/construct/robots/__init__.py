"""What the numbers of a robot mean: one YAML file a robot, read into an `Embodiment` and conversions of units."""
