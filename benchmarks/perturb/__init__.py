"""Changes that a robust policy survives: of pictures, scene and robot (perturb), of wording (paraphrase)."""
