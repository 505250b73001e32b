"""Measurements of hierarchical policies, whose model writes what the policy below it acts on (GPLA, FACTS 2.1)."""
