"""Demonstrations -> labelled language-action clips -> shards. Recording imports `sim` lazily; nothing else does."""
