"""Models that write: conversations to tokens, losses, generation and log-probabilities of image-text-to-text models."""
