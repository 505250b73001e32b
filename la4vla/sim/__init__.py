"""Simulators behind one `Env` protocol. Nothing here imports a simulator at package import."""
