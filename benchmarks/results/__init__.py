"""Protocols, rows of episodes, rates with intervals, paired comparisons, and their export as JSON and CSV."""
