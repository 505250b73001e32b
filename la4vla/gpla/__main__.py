"""`la4vla gpla CONFIG`: every step up to date; `la4vla gpla STEP CONFIG`: one of them. `rounds` also under torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from la4vla.config import GplaConfig, load
from la4vla.config.gpla import TrainingStep
from la4vla.shell import exit_status
from la4vla.types import UserError

TRAININGS = ("ground", "high", "low")
STEPS = (*TRAININGS, "rounds", "report")
USAGE = f"usage: la4vla gpla [{'|'.join(STEPS)}] CONFIG.yaml [key=value ...]"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 2 for bad input in the rounds. Raises UserError for any other, and where a step was stopped
    before its end."""
    asked, rest = ((arguments[0],), arguments[1:]) if arguments and arguments[0] in STEPS else (STEPS, arguments)
    if not rest:
        raise UserError(f"say which config; {USAGE}.")
    config = load(rest[0], rest[1:])
    if not isinstance(config, GplaConfig):
        raise UserError(f"{rest[0]} is not a config of gpla; its `schema:` must say so.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # as in training: nothing is downloaded
    for step in asked:
        status = _run(step, config, rest)
        if status:
            return status
    return 0


def _run(step: str, config: GplaConfig, words: Sequence[str]) -> int:
    """words: config and changes, as they were given."""
    # After the config is known to be good: importing the model costs seconds.
    from la4vla.gpla import jobs, rounds

    if step in TRAININGS:
        part: TrainingStep = vars(config)[step]
        if part.config:
            jobs.train(step, part.config, part.changes, rounds.train_config(part), config.processes)
        return 0
    if step == "rounds":
        if "RANK" in os.environ:
            return rounds.run(config)
        if config.processes > 1:
            jobs.start("rounds", config.processes, "la4vla.gpla", "rounds", *words)
        elif status := rounds.run(config):
            return status
        if not jobs.finished(rounds.training(config)):
            raise UserError("rounds were stopped before their end; start again, and they go on where they stand.")
        return 0
    from la4vla.gpla.report import report

    print(f"gpla: {report(config)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
