"""Demonstrations recorded with the simulators' scripted experts, and the store that holds them."""
