"""What a shard folder holds: describe in numbers, verify against its index, preview as a page."""
