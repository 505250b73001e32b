"""The shard format. writer: clips and their only writer. index: which tars, which clips. read: a tar as clips."""
