"""Why: of many machines one dies or hangs every few days. The others must end within the timeout, by one sentence and
not by eight tracebacks out of a library, and the run must go on from what was saved. Real processes."""

import os
import re
import signal
from pathlib import Path

import pytest

from la4vla import manifest
from la4vla.config import load
from la4vla.train import loop
from la4vla.train.dist import lost_peer
from la4vla.train.health import StopSignal
from tests.train.launch import start, until_logged, wait, write_config

pytestmark = pytest.mark.slow

FAR = ("stages.pretrain.steps=100000", "checkpoint.every_steps=2")


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error:")]


class Stopped(StopSignal):
    """As after a SIGTERM that came before the first step: the run does one, and one more until all have heard."""

    def __init__(self) -> None:
        super().__init__()
        self.received = True


def test_a_rank_whose_peer_hangs_says_so_and_starting_again_resumes(tmp_path, shards, in_process, monkeypatch):
    """The hard case: rank 0 holds the store by which ranks agree who speaks, and it hangs with it. (A rank that dies:
    test_resume.py; DeepSpeed's own process group: test_engines.py.) 20 s are ten times what one rank is ahead of the
    other while both start."""
    config = write_config(tmp_path, shards, "lost")
    ranks = start(2, "-m", "la4vla.train", str(config), *FAR, "engine.timeout_s=20")
    until_logged(ranks[0], config, 3)
    ranks[0].send_signal(signal.SIGSTOP)
    ended = wait([ranks[1]])
    ranks[0].kill()
    wait([ranks[0]])
    (said,) = errors(ended.stderr)
    assert ended.codes == (2,) and "Traceback" not in ended.stderr and "gloo" not in ended.stderr
    assert re.search(r"rank 1 lost its peer \(Timed out waiting 20000ms.*engine.timeout_s, then start again", said)

    monkeypatch.setattr(loop, "StopSignal", Stopped)
    saved = step_saved(config)
    again = in_process(str(config), *FAR)
    assert again.codes == (0,) and "resume: the same samples" in again.stdout, again.stderr
    assert step_saved(config) > saved >= 2


def step_saved(config: Path) -> int:
    newest = manifest.newest(load(config).run.dir)
    assert newest is not None
    return manifest.read(newest).step


def test_a_loader_that_is_killed_ends_all_ranks_with_one_sentence(tmp_path, shards, in_process, monkeypatch):
    """As the kernel kills one when memory runs out. What the sentence says to lower may be lower when it resumes."""
    config = write_config(tmp_path, shards, "loader")
    ranks = start(2, "-m", "la4vla.train", str(config), *FAR, own_loaders=True)
    until_logged(ranks[0], config, 3)
    (loader,) = [pid for pid in children(ranks[1].pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(loader, signal.SIGKILL)
    ended = wait(ranks)
    (said,) = errors(ended.stderr)
    assert ended.codes == (2, 2) and "Traceback" not in ended.stderr
    assert "the loader process was killed, most likely for memory; lower data.read_ahead" in said
    monkeypatch.setattr(loop, "StopSignal", Stopped)
    saved = step_saved(config)
    again = in_process(str(config), *FAR, "data.read_ahead=1")
    assert again.codes == (0,) and "resume: the same samples" in again.stdout and step_saved(config) > saved


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("text", ["mat1 and mat2 shapes cannot be multiplied", "CUDA error: an illegal memory access"])
def test_other_errors_are_not_taken_for_it(text):
    assert not lost_peer(RuntimeError(text))
