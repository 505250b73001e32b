"""Why: a policy that is served in other words than it was trained with fails without an error; so what it is told is
built in one place, and the default must leave every batch as it was."""

from dataclasses import asdict, replace

import pytest
import torch

from la4vla.config import SourceConfig, load, validate
from la4vla.data.reader import Reader, window
from la4vla.data.setup import prepare
from la4vla.levels import levels_of, told
from la4vla.types import UserError
from tests.fixtures import SPEC, encode, make_clip, train_config, write_shards


@pytest.mark.parametrize(
    ("levels", "task", "instruction", "text"),
    [
        ("low", "Tidy the table.", "Move left.", "Move left."),
        ("low", "Tidy the table.", "", ""),
        ("both", "Tidy the table.", "Move left.", "Tidy the table: Move left."),
        ("both", "tidy", "move left", "tidy: move left"),
        ("both", "Move left.", "Move left", "Move left."),
        ("both", "Tidy the table.", " ", "Tidy the table."),
        ("both", "", "Move left.", "Move left."),
    ],
)
def test_what_a_policy_is_told(levels, task, instruction, text):
    assert told(levels, task, instruction) == text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("levels") / "la"
    write_shards(place, [replace(make_clip(n, 6, instruction="move left"), task=f"tidy {n}.") for n in range(8)])
    return place


def batches(folder, levels):
    config = train_config({"la": (folder, "la")}, steps=2)
    config.data.sources["la"] = replace(config.data.sources["la"], **levels)
    with Reader(config, prepare(config, SPEC, encode), 0, 1) as reader:
        return [batch for step in reader.steps("first", 0) for batch in step.batches]


def test_the_default_changes_no_byte_and_both_changes_the_words_alone(folder):
    plain, low, both = batches(folder, {}), batches(folder, {"levels": "low"}), batches(folder, {"levels": "both"})
    for one, same, other in zip(plain, low, both, strict=True):
        for name, value in one.__dict__.items():
            alike = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert alike(value, same.__dict__[name])
            if name not in ("input_ids_BL", "text_mask_BL"):
                assert alike(value, other.__dict__[name])
        for key, row, mask in zip(other.keys, other.input_ids_BL, other.text_mask_BL, strict=True):
            number = int(key.split("/")[1].removeprefix("clip-"))
            assert row[mask].tolist() == encode(f"tidy {number}: move left", ())
        for row, mask in zip(one.input_ids_BL, one.text_mask_BL, strict=True):
            assert row[mask].tolist() == encode("move left", ())


def test_a_clip_without_a_task_cannot_be_told_both():
    clip = replace(make_clip(3, 6), task="")
    assert window(clip, 0, SPEC.horizon, "la", "la").instruction == clip.instruction
    with pytest.raises(UserError, match="la/clip-00003: the clip has no task"):
        window(clip, 0, SPEC.horizon, "la", "la", "both")


def test_a_checkpoint_says_how_its_policy_is_asked():
    config = train_config({"la": ("a", "la"), "vla": ("b", "vla")})
    assert levels_of(asdict(config)) == "low"
    config.data.sources["vla"].levels = "both"
    validate(config)
    assert levels_of(asdict(config)) == "both", "sources that show images decide"
    config.data.sources["more"] = SourceConfig("c", "vla")
    config.stages["first"].mixture["more"] = 1.0
    with pytest.raises(UserError, match="source more with levels: low and vla with levels: both"):
        validate(config)
    config.stages["first"].mixture["vla"] = 0.0
    assert levels_of(asdict(config)) == "low"


def test_a_conversation_has_no_levels(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {dir: runs/x}\ndata: {sources: {talk: {path: c, kind: text, levels: both}, la: {path: a, kind: la}}}\n"
        "stages: {only: {mixture: {la: 1}, steps: 10}}\n"
    )
    with pytest.raises(UserError, match=r"data.sources.talk.levels is both"):
        load(recipe)
    with pytest.raises(UserError, match="nearest is `both`"):
        load(recipe, ["data.sources.talk.levels=low", "data.sources.la.levels=bot"])
