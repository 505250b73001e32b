"""The steps as processes: the ordinary trainer, left out where its run is finished."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from la4vla.config import TrainConfig
from la4vla.train.resume import find_resume, is_finished
from la4vla.types import UserError


def train(name: str, path: str, changes: Sequence[str], config: TrainConfig, processes: int) -> None:
    """Brings a run to its end. Raises UserError where it failed, or was stopped by a signal and saved."""
    if finished(config):
        print(f"{name}: {config.run.dir} is finished, left out", flush=True)
        return
    print(f"{name}: {path}", flush=True)
    start(name, processes, "la4vla.train", path, *changes)
    if not finished(config):
        raise UserError(f"{name} was stopped before its end; start again, and it goes on from its newest checkpoint.")


def finished(config: TrainConfig) -> bool:
    """Whether the run in run.dir has done all its steps. Raises UserError where it is another one's."""
    return is_finished(config, find_resume(config).position)


def start(name: str, processes: int, module: str, *arguments: str) -> None:
    """`python -m MODULE ARGUMENTS`, by torchrun where there are several processes. Signals to end go on to it. Raises
    UserError where it fails."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    passed_on: list[int] = []
    with subprocess.Popen([*command, module, *arguments]) as child:

        def pass_on(number: int, frame: FrameType | None) -> None:
            passed_on.append(number)
            child.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if passed_on:
        raise UserError(f"{name} was stopped by a signal; start again, and it goes on from its newest checkpoint.")
    if status:
        raise UserError(f"{name} ended with status {status}; it says why above. Start again after mending it.")
