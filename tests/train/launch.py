"""Start real training processes, as torchrun would but without its agent's seconds, and shard folders to train on."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from la4vla.config import load
from la4vla.data import loader

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LIMIT_S = 600
"""For whatever a process does, ten times what the longest here takes on a quiet machine (engine_cases.py): only a hang
gets there."""

CONFIG = """
run: {{dir: {run}, seed: 3}}
model: {{dropout: 0.0}}
data:
  streams: 4
  decode_threads: 1
  sources:
    la: {{path: {data}/la, kind: la}}
    vla: {{path: {data}/vla, kind: vla}}
stages:
  pretrain:
    mixture: {{la: 0.6, vla: 0.4}}
    steps: 5
    global_batch: 8
    micro_batch: 2
    train: [vision, projector, embeddings, llm, head]
    lr: 1.0e-3
    warmup_steps: 2
  finetune:
    mixture: {{la: 1.0}}
    steps: 5
    global_batch: 8
    micro_batch: 4
    train: [llm, head]
    lr: 1.0e-3
    warmup_steps: 1
checkpoint: {{every_steps: 2, keep_last: 9}}
log: {{every_steps: 1}}
"""
"""Five mixed steps with everything training (8 samples are two units of mixing, so some steps are LA only and some
have both kinds), then five LA steps with vision frozen."""
STEPS = 10


IMPORTING = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""What libraries look at while they are imported."""


@dataclass(frozen=True)
class Ended:
    codes: tuple[int, ...]
    stdout: str
    stderr: str


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    distributed = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    alone = {**IMPORTING, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {**os.environ, **alone, **(distributed if ranks > 1 else {})}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["la4vla.train.run", "la4vla.vlm.load"])


def start_forks() -> None:
    """The process that has imported the libraries and is forked from, unless it runs."""
    with mock.patch.dict(os.environ, IMPORTING):
        forkserver.ensure_running()


def forked_loaders() -> AbstractContextManager[object]:
    """Loader processes are forked from it, too, instead of importing the libraries again for two to four seconds."""
    return mock.patch.object(loader, "START", "forkserver")


class Rank:
    """`python COMMAND` in a process of its own, which is forked from one that has imported the libraries: that saves
    four seconds a process. Its output goes into files: into a pipe that nobody reads it would write for a while, and
    then it and the ranks that need it would wait for ever."""

    def __init__(self, command: tuple[str, ...], env: dict[str, str], own_loader: bool = False) -> None:
        """own_loader: its loader process is its own child, as in every other run."""
        self._files = [tempfile.NamedTemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        start_forks()
        names = [file.name for file in self._files]
        self._process = FORKS.Process(target=_run, args=(command, env, names, own_loader))
        self._process.start()
        atexit.register(self._process.kill)  # one that a failed test left running would be waited for at the exit
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        """Its exit status, minus the signal that ended it."""
        self._process.join(LIMIT_S)
        assert self._process.exitcode is not None, f"still running after {LIMIT_S} s"
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def output(self) -> list[str]:
        """[stdout, stderr] of a process that has ended."""
        return [Path(file.name).read_text() for file in self._files]


def _run(command: tuple[str, ...], env: dict[str, str], outputs: list[str], own_loader: bool) -> None:
    """What `python COMMAND` does, in the forked process."""
    if own_loader:
        return _run_as(command, env, outputs)
    # It would start another, since the one that it was forked from is not its child.
    with forked_loaders(), mock.patch.object(forkserver._forkserver, "ensure_running", lambda: None):
        _run_as(command, env, outputs)


def _run_as(command: tuple[str, ...], env: dict[str, str], outputs: list[str]) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, name in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    try:
        if command[0] == "-m":
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as at the end of an interpreter; multiprocessing runs its own alone


def start(ranks: int, *command: str, own_loaders: bool = False) -> list[Rank]:
    """`python COMMAND` once a rank."""
    port = free_port()
    return [Rank(command, environment(rank, ranks, port), own_loaders) for rank in range(ranks)]


def wait(processes: list[Rank]) -> Ended:
    """Until they end by themselves."""
    try:
        codes = tuple(process.wait() for process in processes)
    finally:
        for process in processes:
            process.kill()
    outputs = [process.output() for process in processes]
    return Ended(codes, "".join(out for out, _ in outputs), "".join(err for _, err in outputs))


def until_logged(process: Rank, config: Path, step: int) -> None:
    """Until a run has logged so many steps, as long as it goes on logging."""
    path = Path(load(config).run.dir) / "metrics.jsonl"
    lines, deadline = 0, time.monotonic() + LIMIT_S
    while lines < step:
        assert process.poll() is None, process.output()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)
        now = path.read_text().count("\n") if path.is_file() else 0
        if now > lines:
            lines, deadline = now, time.monotonic() + LIMIT_S


def train(ranks: int, config: Path, *overrides: str) -> Ended:
    return wait(start(ranks, "-m", "la4vla.train", str(config), *overrides))


def train_killed(ranks: int, step: int, config: Path, *overrides: str) -> Ended:
    """Rank 0 is killed in the middle of saving `step`, when its files are written and nothing is marked complete."""
    return wait(start(ranks, str(HERE / "killed.py"), "saving", str(step), str(config), *overrides))


def train_killed_between(step: int, seconds: float, config: Path) -> Ended:
    """One rank, killed `seconds` after it has saved `step`, but not while it saves another."""
    return wait(start(1, str(HERE / "killed.py"), "between", str(step), str(seconds), str(config)))


def start_torchrun(ranks: int, *arguments: str) -> Rank:
    """`torchrun -m la4vla.train ARGUMENTS` with its agent."""
    agent = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    shutdown = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"}  # as the launchers
    return Rank((*agent, "-m", "la4vla.train", *arguments), {**environment(0, 1, 0), **shutdown})


def write_config(folder: Path, data: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(CONFIG.format(run=folder / name, data=data))
    return path
