"""A model that says how well words fit a motion in a scene (GPLA's grounding model), and other scorers beside it."""
