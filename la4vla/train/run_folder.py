"""What a run keeps in its folder beside checkpoints and metrics: its lock, its config, the first images it sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

from la4vla import manifest
from la4vla.config import TrainConfig, to_yaml
from la4vla.files import locked
from la4vla.train import disk
from la4vla.train.dist import World, on_main


@contextmanager
def only_run(config: TrainConfig, world: World) -> Iterator[None]:
    """Keeps other runs out of run.dir until the end of this one, however it ends. Raises UserError (on all ranks)."""
    run_dir = Path(config.run.dir)
    taken = f"{run_dir}: another run is at work there; wait for it or end it, or choose another run.dir."
    with ExitStack() as held:

        def hold() -> None:
            with disk.guarded(run_dir, "a run"):
                held.enter_context(locked(run_dir / manifest.LOCK, taken))

        on_main(world, hold)
        yield


def write_config(config: TrainConfig) -> None:
    """The resolved config, as a file to read and to start again from."""
    run_dir = Path(config.run.dir)
    with disk.guarded(run_dir, manifest.CONFIG):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / manifest.CONFIG).write_text(to_yaml(config))


def write_first_batch(images: list[torch.Tensor], folder: Path) -> None:
    """Images uint8 [3, H, W] side by side, as the model gets them: look at it once a run. No file without images."""
    if not images:
        return
    tiles = [image.permute(1, 2, 0).cpu().numpy() for image in images]
    blank = np.zeros_like(tiles[0])
    rows = [tiles[first : first + 8] for first in range(0, len(tiles), 8)]
    sheet = np.concatenate([np.concatenate(row + [blank] * (8 - len(row)), axis=1) for row in rows])
    cv2.imwrite(str(folder / manifest.FIRST_BATCH), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
