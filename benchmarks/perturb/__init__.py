"""Changes that a robust policy survives: of images, scene and robot (perturb), of wording (paraphrase)."""
