"""Why: the manifest is what every room believes a checkpoint to be; a damaged or strange one must be a sentence."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from la4vla import manifest
from la4vla.manifest import Manifest, TrainedRobot
from la4vla.types import UserError
from tests.fixtures import ARM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Manifest(
        schema=manifest.SCHEMA_VERSION,
        stage="one",
        stage_step=1,
        step=1,
        skipped_steps=0,
        config={},
        learner="policy",
        model={},
        base={},
        input_spec={},
        robots=[asdict(TrainedRobot(ARM.to_dict(), [], ["front"], {"front": [[480, 640]]}))],
        text={},
        sources={"a": "1f"},
        weights_sha256="",
        training_sha256="",
        ema_sha256="",
        tokenizer_sha256={},
        git_sha="",
        versions={},
        world_size=1,
    ).write(tmp_path)
    (tmp_path / manifest.COMPLETE).touch()
    return tmp_path


def rewrite(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / manifest.MANIFEST).read_text()) | changes
    kept = {key: value for key, value in raw.items() if value is not None}
    (folder / manifest.MANIFEST).write_text(json.dumps(kept))


def test_it_comes_back(folder):
    found = manifest.read(folder)
    assert (found.stage, found.robot().views, found.sources) == ("one", ["front"], {"a": "1f"})


@pytest.mark.parametrize("text", [b"", b'{"schema": 1, "sta', b"[]", b"{}", b"\xff", None])
def test_a_damaged_one_is_one_sentence(folder, text):
    path = folder / manifest.MANIFEST
    path.unlink() if text is None else path.write_bytes(text)
    with pytest.raises(UserError, match=r"its manifest.json is damaged .* use an earlier step"):
        manifest.read(folder)


@pytest.mark.parametrize("changes", [{"world_size": None}, {"schema": 1, "training_sha256": None, "git_sha": None}])
def test_one_of_another_version_is_not_called_damaged(folder, changes):
    """Nobody may be told to delete a checkpoint that another version reads."""
    rewrite(folder, **changes)
    with pytest.raises(
        UserError, match=r"not of this la4vla \(schema .*missing .*\); read it with the version"
    ) as caught:
        manifest.read(folder)
    assert "delete" not in str(caught.value)


def test_one_from_the_future_is_refused(folder):
    rewrite(folder, schema=99, new_field=1)
    with pytest.raises(UserError, match=r"newer la4vla .* upgrade"):
        manifest.read(folder)


def test_one_that_is_not_complete_is_not_read(folder):
    (folder / manifest.COMPLETE).unlink()
    with pytest.raises(UserError, match="not a complete checkpoint"):
        manifest.read(folder)
