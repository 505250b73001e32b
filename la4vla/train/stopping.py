"""When a run ends by its held-out loss: a pure function of the losses measured so far, so that a resumed run ends where
the straight one did. They stand in metrics.jsonl (manifest.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.train.dist import from_main


class HeldOutStop:
    """Counts measurements without a lower loss than the lowest before (validate.patience)."""

    def __init__(self, config: TrainConfig, step: int) -> None:
        """step: where the run stands."""
        self._patience = config.validate.patience
        self._losses = [item for item in manifest.held_out_losses(config.run.dir) if item[0] <= step]

    @property
    def over(self) -> bool:
        return bool(self._patience and self._losses) and self._since_best() >= self._patience

    @property
    def reason(self) -> str:
        step, loss = min(self._losses, key=lambda item: item[1])
        return (
            f"its held-out loss was not lower in {self._since_best()} measurements than {loss:.4f} at step {step}, "
            "whose checkpoint is kept"
        )

    def take(self, step: int, measured: Mapping[str, Any]) -> bool:
        """Take in what was measured at a step; whether the run is over. Collective: rank 0's number counts."""
        if manifest.HELD_OUT_LOSS in measured:
            self._losses.append((step, from_main(float(measured[manifest.HELD_OUT_LOSS]))))
        return self.over

    def _since_best(self) -> int:
        losses = [loss for _, loss in self._losses]
        return len(losses) - 1 - losses.index(min(losses))


def is_over(config: TrainConfig, step: int) -> bool:
    """Whether the run had ended so by a step."""
    return HeldOutStop(config, step).over
