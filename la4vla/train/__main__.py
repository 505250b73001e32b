"""Train a config, alone or under torchrun. What the user can mend is one sentence on stderr and exit status 2.

python -m la4vla.train configs/tiny/mixpt.yaml stages.pretrain.steps=100
torchrun --standalone --nproc-per-node 2 -m la4vla.train configs/tiny/mixpt.yaml
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from la4vla.config import TrainConfig, load
from la4vla.types import UserError

if TYPE_CHECKING:
    from la4vla.train.dist import World
    from la4vla.train.run import OpenLearner

_CURE = (
    "; see that rank's log for why it ended, or hangs longer than engine.timeout_s, then start again: the run resumes "
    "from its newest checkpoint."
)
USAGE = "usage: [torchrun ... -m | python -m] la4vla.train CONFIG.yaml [key=value ...]"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 trained, finished before, or stopped by SIGTERM or SIGINT and saved; 2 for bad input, and where
    another rank is lost."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # ranks never download, before anything imports the hub's library
    alone = os.environ.get("RANK", "0") == "0"
    if not arguments or arguments[0] in ("-h", "--help"):
        if alone:
            print(USAGE, file=sys.stderr)
        return 2 if not arguments else 0
    try:
        config = load(arguments[0], arguments[1:])
        if not isinstance(config, TrainConfig):
            raise UserError(f"{arguments[0]} is not a config for training; give one without `schema:`.")
    except UserError as error:
        if "RANK" in os.environ:
            return _failed_before_start(error)
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(config)


def run(config: TrainConfig, opener: OpenLearner | None = None) -> int:
    """`loop.train` as one rank of a run, or as all of it: `main` says its exit status."""
    # After the config is known to be good: importing torch.distributed and the model costs seconds.
    from la4vla.train import dist
    from la4vla.train.loop import train
    from la4vla.train.run import open_learner

    world = dist.connect()
    try:
        dist.join(world, config.engine.timeout_s)
        train(config, world, opener or open_learner)
    except UserError as error:
        _say_once(error, world)
        dist.leave(world)
        return 2
    except RuntimeError as error:
        how = dist.lost_peer(error)
        if not how:
            raise
        # If the peer said why it ended, this rank has nothing to add.
        _say_once(UserError(f"rank {world.rank} lost its peer ({how}){_CURE}"), world)
        dist.leave(world)
        return 2
    dist.stop()
    return 0


def _failed_before_start(error: UserError) -> int:
    """Every process reads the same file and fails alike. Whoever is first says so: torchrun ends the others then."""
    from la4vla.train import dist

    _say_once(error, dist.connect())
    return 2


def _say_once(error: UserError, world: World) -> None:
    from la4vla.train import dist

    if dist.first_to_fail(world):
        fresh_line = "" if world.is_main else "\n"  # rank 0's progress bar may stand in this one
        print(f"{fresh_line}error: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
