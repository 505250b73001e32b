"""Why: a flipped bit in a checkpoint trains on in silence, and a file that is gone was a traceback. Each is refused,
and what the sentence says to do is done here, to the letter: the run goes on."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from la4vla import manifest
from la4vla.config import load
from tests.train.launch import STEPS

pytestmark = pytest.mark.slow


@pytest.fixture
def run(alone, tmp_path) -> Path:
    """The folder of a run that was killed after step 4; checkpoints 2 and 4 are there."""
    folder = tmp_path / "run"
    shutil.copytree(load(alone).run.dir, folder)
    for checkpoint in manifest.complete(folder)[2:]:
        shutil.rmtree(checkpoint)
    assert [path.name for path in manifest.complete(folder)] == ["step_00000002", "step_00000004"]
    return folder


def flip(path: Path) -> None:
    """One bit in the middle, as a disk or a network does it; the file's size and header stay."""
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


TOKENIZER = f"{manifest.TOKENIZER}/tokenizer.json"
FILES = (manifest.WEIGHTS, manifest.TRAINING, TOKENIZER)
DAMAGE = [
    *((flip, name, f"its {name} is damaged") for name in FILES),
    *((remove, name, f"it lacks {name}") for name in FILES),
    (remove, manifest.MANIFEST, "its manifest.json is damaged"),
]


def refusal(ended) -> str:
    """The one sentence of a run that was refused."""
    assert ended.codes == (2,) and "Traceback" not in ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    return said


@pytest.mark.parametrize(("damage", "name", "what"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_named(alone, run, in_process, damage, name, what):
    newest = manifest.complete(run)[-1]
    damage(newest / name)
    said = refusal(in_process(str(alone), f"run.dir={run}"))
    assert f"{newest}: {what}" in said and f"(rm -r {newest})" in said and "resumes from step_00000002" in said


def test_after_the_command_that_is_named_the_run_goes_on_and_ends_in_the_same_bytes(alone, run, in_process):
    flip(run / "checkpoints" / "step_00000004" / manifest.TRAINING)
    said = refusal(in_process(str(alone), f"run.dir={run}"))
    obey(said)
    ended = in_process(str(alone), f"run.dir={run}")
    assert ended.codes == (0,) and "resume: exact" in ended.stdout and "step_00000002" in ended.stdout
    last = f"checkpoints/step_{STEPS:08d}"
    for name in FILES:
        assert (run / last / name).read_bytes() == (Path(load(alone).run.dir) / last / name).read_bytes()


def test_a_run_without_a_checkpoint_before_begins_anew(alone, run, in_process):
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    (run / "checkpoints" / "step_00000004" / manifest.WEIGHTS).unlink()
    said = refusal(in_process(str(alone), f"run.dir={run}"))
    assert "no checkpoint before it and begins anew" in said
    obey(said)
    short = ("stages.pretrain.steps=1", "stages.finetune.steps=1")
    ended = in_process(str(alone), f"run.dir={run}", *short)
    assert ended.codes == (0,) and [path.name[-1] for path in manifest.complete(run)] == ["1", "2"]


def obey(said: str) -> None:
    """Runs the command in the brackets of a sentence."""
    command = re.search(r"\((rm -r [^)]*)\)", said)
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)


@pytest.mark.parametrize("given", ["", "checkpoints/step_00000004"], ids=["run", "checkpoint"])
@pytest.mark.parametrize(("damage", "name", "what"), [DAMAGE[0], DAMAGE[2], DAMAGE[3], DAMAGE[6]])
def test_weights_to_start_from_are_checked_too(alone, run, in_process, tmp_path, given, damage, name, what):
    newest = manifest.complete(run)[-1]
    damage(newest / name)
    changes = (f"run.dir={tmp_path / 'new'}", f"run.init_from={run / given}")
    said = refusal(in_process(str(alone), *changes))
    assert f"{newest}: {what}" in said
    assert f"copy it again, or set run.init_from={run}/checkpoints/step_00000002" in said


def test_a_run_starts_from_the_checkpoint_that_is_named(alone, run, in_process, tmp_path):
    """And AdamW's state of a checkpoint to start from is not read, so it may be gone."""
    flip(run / "checkpoints" / "step_00000004" / manifest.WEIGHTS)
    (run / "checkpoints" / "step_00000002" / manifest.TRAINING).unlink()
    new = (f"run.dir={tmp_path / 'new'}", "stages.pretrain.steps=1", "stages.finetune.steps=1")
    cure = re.search(r"run.init_from=[^ ,]*", refusal(in_process(str(alone), *new, f"run.init_from={run}")))
    assert cure is not None
    ended = in_process(str(alone), *new, cure[0])
    assert ended.codes == (0,) and "weights from" in ended.stdout, ended.stderr
    alone_there = shutil.copytree(run / "checkpoints" / "step_00000004", tmp_path / "copied")
    said = refusal(in_process(str(alone), f"run.dir={tmp_path / 'third'}", f"run.init_from={alone_there}"))
    assert "copy it again, or set run.init_from to another checkpoint" in said
