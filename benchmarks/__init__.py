"""Success rates that can be trusted: named protocols, one row an episode, intervals on every rate."""
