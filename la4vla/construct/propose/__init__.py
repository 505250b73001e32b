"""From an episode to candidates: keyframes, labelled spans by motion or by a vision-language model, and their judge."""
