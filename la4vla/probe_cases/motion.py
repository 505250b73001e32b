"""Where a chunk of actions takes the hand, or the hand of one of two arms, in the embodiment's base frame."""

from __future__ import annotations

import numpy as np

from la4vla.types import ARMS, Embodiment, UserError


def translates(embodiment: Embodiment) -> bool:
    """Whether actions move the hand, or both hands, along x and y (and z) of the base frame."""
    action, state = embodiment.action, embodiment.state
    needed = [action] if action.reference == "delta" else [action, state]
    return all((vector.has_position or vector.arms) and vector.frame == "base" for vector in needed)


def check_translation(embodiment: Embodiment) -> None:
    """Raises UserError where actions do not move the hand along x and y (and z) of the base frame."""
    if not translates(embodiment):
        raise UserError(
            f"embodiment `{embodiment.name}` does not command x, y (and z) in its base frame, so its motion has no "
            "direction to compare; use data of a robot whose actions are Cartesian."
        )


def travel(action_TA: np.ndarray, state_S: np.ndarray, embodiment: Embodiment, arm: str = "") -> np.ndarray:
    """float64 [T, 3]: displacement (x, y, z) from where the chunk starts to where action t sends the hand.

    action_TA, state_S: raw units of the embodiment; state of the frame the chunk starts at. Delta actions are added up
    (FACTS 1.2), in the action's own unit; absolute ones are taken relative to the state. arm: of two, left, right, or
    both, whose mean is taken.
    """
    if embodiment.action.arms:
        arms = [name for name in ARMS if arm in (name, "both")]
        return np.mean([_travel(action_TA, state_S, embodiment, name) for name in arms], axis=0)
    return _travel(action_TA, state_S, embodiment, "")


def _travel(action_TA: np.ndarray, state_S: np.ndarray, embodiment: Embodiment, arm: str) -> np.ndarray:
    action, state = embodiment.action, embodiment.state
    moved_T3 = action.of_arm(arm).translation(action_TA[:, action.dims(*action.names_of(arm))])
    if action.reference == "delta":
        return np.cumsum(moved_T3, axis=0)
    return moved_T3 - state.of_arm(arm).translation(state_S[None, state.dims(*state.names_of(arm))])


def alignment(predicted_N3: np.ndarray, toward_N3: np.ndarray) -> np.ndarray:
    """bool [N]: the displacement lies in the half-space of its direction. DAR is the mean; chance is 0.5."""
    return (predicted_N3 * toward_N3).sum(axis=1) > 0
