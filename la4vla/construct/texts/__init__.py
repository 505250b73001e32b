"""Conversations about demonstrations. annotate: what was done when; rows: what is asked about it; write: the shards."""
