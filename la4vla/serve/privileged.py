"""What only a simulator knows, by the names under which a policy asks for it (`Observation.privileged`)."""

from __future__ import annotations

PHASE = "phase"
"""Number of the phase in which the simulator's scripted expert would be."""

LOW_LEVEL = "low_level"
"""Text: what the scripted expert would do now, as the kinematic labeller would say it. Empty where nothing can be
said."""

TEXTS = frozenset({LOW_LEVEL})
"""Those that are texts; the others are numbers."""
