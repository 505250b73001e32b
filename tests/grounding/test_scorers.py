"""Why: a score picks the sentence that a policy is taught, so it must be a property of the words and the motion alone:
not of what it is asked with, not of dropout, not of a processor that belongs to another model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from la4vla import manifest
from la4vla.grounding.load import load_scorer
from la4vla.grounding.model import build_grounding
from la4vla.grounding.towers import build_towers, load_towers
from la4vla.types import Deed, UserError
from tests.train.pairs import COLOURS, SIZE, WAYS, pair_clip


def deed(way: str, colour: str, said: str, seed: int = 0) -> Deed:
    axis, sign = WAYS[way]
    draw = np.random.Generator(np.random.Philox(seed))
    actions = 0.1 * draw.standard_normal((4, 4)).astype(np.float32)
    actions[:, axis] += sign
    return Deed(f"{way}/{seed}", said, np.full((SIZE, SIZE, 3), COLOURS[colour], np.uint8), actions)


DEEDS = [deed("left", "red", "push the red cube left", 1), deed("up", "blue", "Push the  blue cube down.", 2)] + [
    deed(way, "green", f"push the green cube {way}", number) for number, way in enumerate(list(WAYS) * 7)
]


@pytest.fixture(scope="module")
def specs(run, blind_run, public, pairs) -> dict[str, str]:
    return {
        "grounding": str(run),
        "action_only": f"action_only:{blind_run}",
        "clip": f"clip:{public}/clip",
        "siglip": f"siglip:{public}/siglip",
        "rules": f"rules:{pairs}/clips@+x,+y,+z",
    }


@pytest.mark.parametrize("name", ["grounding", "action_only", "clip", "siglip", "rules"])
def test_a_score_does_not_depend_on_what_it_is_asked_with(specs, name):
    scorer = load_scorer(specs[name], "cpu")
    assert scorer.name == name
    whole = scorer.scores(DEEDS)
    assert whole.dtype == np.float32 and whole.shape == (len(DEEDS),) and np.isfinite(whole).all()
    assert np.abs(whole).max() <= 1 + 1e-6 and len(set(whole.tolist())) > 3
    assert scorer.scores(DEEDS[::-1]).tolist() == whole[::-1].tolist()
    assert [float(scorer.scores([one])[0]) for one in DEEDS[:3]] == whole[:3].tolist()
    assert (
        scorer.scores([replace(one, sentence=f"{one.sentence.upper()}.") for one in DEEDS]).tolist() == whole.tolist()
    )
    assert scorer.scores([]).shape == (0,)


def test_a_trained_scorer_knows_its_words(specs):
    """Held-out motions: a reversed word and another colour score less. The blind one sees no colour."""
    clips = [pair_clip(number) for number in range(100, 148)]
    pictures = {name: np.full((SIZE, SIZE, 3), rgb, np.uint8) for name, rgb in COLOURS.items()}
    swaps = {"left": "right", "right": "left", "up": "down", "down": "up", "forward": "backward", "backward": "forward"}
    true, reversed_word, other_colour = [], [], []
    for clip in clips:
        _, _, colour, _, way = clip.instruction.rstrip(".").split()
        one = Deed(clip.key, clip.instruction, pictures[colour], clip.action[:4])
        true.append(one)
        reversed_word.append(replace(one, sentence=f"push the {colour} cube {swaps[way]}"))
        other_colour.append(replace(one, sentence=f"push the {'red' if colour != 'red' else 'blue'} cube {way}"))
    for name, sees in (("grounding", True), ("action_only", False), ("rules", False)):
        scorer = load_scorer(specs[name], "cpu")
        of_true, of_reversed, of_other = (scorer.scores(deeds) for deeds in (true, reversed_word, other_colour))
        assert (of_true > of_reversed).mean() > 0.9, name
        assert ((of_true > of_other).mean() > 0.7) == sees, name


def test_embeddings_have_the_names_of_what_is_embedded(specs):
    for name, motions in (("grounding", "images and actions"), ("action_only", "actions"), ("clip", "images")):
        scorer = load_scorer(specs[name], "cpu")
        found = scorer.embeddings(DEEDS)
        assert set(found) == {"sentences", motions}
        assert np.allclose((found["sentences"] * found[motions]).sum(1), scorer.scores(DEEDS))


def test_clip_reads_a_row_to_its_end_and_no_further(specs):
    """Its end is found by its token, so padding would be read as words without the mask."""
    scorer = load_scorer(specs["clip"], "cpu")
    short = scorer.scores([replace(DEEDS[0], sentence="push")])[0]
    assert short != scorer.scores([replace(DEEDS[0], sentence="push the")])[0]


def test_rules_add_up_commands_and_take_absolute_ones_apart(pairs):
    scorer = load_scorer(f"rules:{pairs}/clips@-y,+x,+z", "cpu")
    assert scorer.scores([deed("right", "red", "go forward")])[0] > 0.9
    assert scorer.scores([deed("right", "red", "go backward and up")])[0] < -0.9
    assert scorer.scores([deed("right", "red", "close the gripper")])[0] == 0
    still = replace(DEEDS[0], actions=np.zeros((3, 4), np.float32))
    assert scorer.scores([still])[0] == 0
    robot = scorer.embodiment
    absolute = replace(scorer, embodiment=replace(robot, action=replace(robot.action, reference="absolute")))
    path = np.cumsum(deed("left", "red", "").actions, axis=0) + 5
    assert absolute.scores([Deed("a", "go backward", DEEDS[0].image, path)])[0] > 0.9


def test_towers_come_from_a_folder(public):
    towers = load_towers(str(public / "siglip"), vision=True)
    model = build_grounding(towers, 16, 4, 3, 0).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    motion = model.motion(images, torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.bool))
    sentence = model.sentence(torch.tensor([towers.encoder.encode("push the red cube left")] * 2))
    assert torch.isfinite(motion @ sentence.T).all()
    assert load_towers(str(public / "siglip"), vision=False).vision is None


def test_no_weight_is_a_scalar():
    """DeepSpeed cannot send one to other ranks."""
    model = build_grounding(build_towers("tiny", True, 0), 16, 4, 3, 0)
    assert all(parameter.ndim for parameter in model.parameters())


def test_fresh_towers_are_a_function_of_the_seed():
    one, same, other = (build_towers("tiny", True, seed) for seed in (1, 1, 2))
    states = [{**towers.text.state_dict(), **towers.vision.state_dict()} for towers in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def spoiled(folder: Path, into: Path, file: str, **changes) -> Path:
    shutil.copytree(folder, into)
    raw = json.loads((into / file).read_text())
    (into / file).write_text(json.dumps({**raw, **changes}))
    return into


def test_what_does_not_fit_is_one_sentence(specs, public, run, blind_run, tmp_path):
    big = spoiled(public / "siglip", tmp_path / "big", "preprocessor_config.json", size={"height": 32, "width": 32})
    words = spoiled(public / "siglip", tmp_path / "words", "tokenizer.json")
    raw = json.loads((words / "tokenizer.json").read_text())
    raw["model"]["vocab"] |= {f"word{number}": 100 + number for number in range(50)}
    (words / "tokenizer.json").write_text(json.dumps(raw))
    for spec, said in (
        (f"siglip:{big}", "its processor makes images of 32 pixels and its weights take 16"),
        (f"siglip:{words}", "its tokenizer has 66 tokens and its weights 16"),
        (f"siglip:{public}/clip", "its model_type is `clip`"),
        (f"clip:{tmp_path}/nowhere", "no config.json in it"),
        ("rules", "the rule has to know the robot"),
        (f"rules:{run}@+x,+y,+y", "the rule has to know the robot"),
        (f"action_only:{run}", "is shown the scene"),
        (str(tmp_path / "nowhere"), "no such checkpoint folder"),
    ):
        with pytest.raises(UserError, match=said.replace("`", ".")):
            load_scorer(spec, "cpu")
    for place, said in ((big, "its processor makes images of 32"), (words, "its tokenizer has 66 tokens")):
        with pytest.raises(UserError, match=said):
            load_towers(str(place), vision=True)
    with pytest.raises(UserError, match="a grounding model stands on"):
        load_towers(str(public / "clip"), vision=True)
    scorer = load_scorer(specs["grounding"], "cpu")
    for wrong, said in (
        (
            replace(DEEDS[0], actions=np.zeros((5, 4), np.float32)),
            "takes 1 to 4 actions of 4 numbers",
        ),
        (replace(DEEDS[0], actions=np.full((1, 4), np.nan, np.float32)), "an action is not finite"),
        (replace(DEEDS[0], sentence="push " * 60), "and the model takes 48"),
    ):
        with pytest.raises(UserError, match=said):
            scorer.scores([wrong])


def test_a_run_means_its_best_checkpoint(run, tmp_path):
    """By held-out loss where it was measured."""
    copy = shutil.copytree(run, tmp_path / "run")
    early, newest = manifest.complete(copy)[0], manifest.newest(copy)
    assert manifest.best(copy) == newest
    rows = [{"step": 4, manifest.HELD_OUT_LOSS: 1.0}, {"step": 40, manifest.HELD_OUT_LOSS: 2.0}]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')
    assert manifest.best(copy) == early
    assert load_scorer(str(copy), "cpu").identity == manifest.read(early).weights_sha256
    assert load_scorer(str(newest), "cpu").identity == manifest.read(newest).weights_sha256
