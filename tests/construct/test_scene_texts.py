"""Why: a question about a scene measures sight only if nobody can answer it without looking, and only if its answer is
true. Answers are held against the simulator and against what a blind reader of the questions could learn."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.config import ConstructConfig, ReadConfig, RecordConfig
from la4vla.construct.__main__ import run
from la4vla.construct.ledger import Ledger
from la4vla.construct.recording import scenes
from la4vla.construct.recording.store import episode_path, read_episode, write_episode
from la4vla.construct.texts import scene
from la4vla.questions.wordings import ask
from la4vla.types import UserError
from tests.construct.recorded import episode, recorded
from tests.construct.test_write_texts import rows

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("box", "cylinder", "ball", "capsule")


def made_up(number):
    """Facts of a scene with one to four toys; every fourth has one that hides."""
    draw = np.random.Generator(np.random.Philox(number))
    toys = []
    for _ in range(2):
        count = int(draw.integers(1, 5))
        colours = draw.permutation(COLOURS)[:count]
        things = [
            {
                "name": str(draw.choice(SHAPES)),
                "colour": str(colour),
                "place": draw.uniform(-0.4, 0.4, 3).round(3).tolist(),
                "state": "",
                "states": [],
                "pixels": 0 if number % 4 == 0 and place == 0 else 200,
            }
            for place, colour in enumerate(colours)
        ]
        toys.append(things)
    window = {"name": "window", "colour": "", "place": [0, 0, 0], "states": ["closed", "open"], "pixels": 0}
    return {
        "start": [{**window, "state": "closed"}],
        "end": [{**window, "state": "open" if number % 3 else ""}],
        "last": 81,
        "toys": toys,
        "pixels": 10000,
    }


def drafted(number, held_out=False):
    return scene.drafts(made_up(number), episode(number), ("corner4",), 0, held_out)


def test_answers_are_true_of_the_things(tmp_path):
    seen = Counter()
    for number in range(60):
        facts = made_up(number)
        for draft in drafted(number):
            ((view, image),) = draft.images
            seen[draft.question] += 1
            if draft.question == "scene_state":
                assert view == "corner4" and draft.answer == ("closed" if image == 0 else "open")
                assert image in (0, 81) and "window" in draft.text
                continue
            assert view == "corner4_toys"
            things = facts["toys"][image]
            named = re.findall(rf"\b({'|'.join(COLOURS)})\b", draft.text)
            by_colour = {thing["colour"]: thing for thing in things}
            assert all(by_colour[colour]["pixels"] for colour in named), "a toy that hides is not asked about"
            if draft.question == "scene_count":
                assert draft.answer == str(len(things)) and all(thing["pixels"] for thing in things)
            if draft.question == "scene_colour":
                (shape,) = [name for name in SHAPES if name in draft.text]
                assert [thing["colour"] for thing in things if thing["name"] == shape] == [draft.answer]
            if draft.question == "scene_side":
                first, second = named if "is the" in draft.text else reversed(named)
                left = by_colour[first]["place"][1] - by_colour[second]["place"][1]
                assert draft.answer == ("left" if left > 0 else "right") and abs(left) >= 0.05
            if draft.question == "scene_nearer":
                distance = {colour: np.hypot(*by_colour[colour]["place"][:2]) for colour in named}
                assert draft.answer == min(distance, key=distance.__getitem__)
    assert min(seen.values()) > 20 and len(seen) == 5


def best_blind(train, test):
    """Right answers in `test` of a reader who knows how often each question got each answer in `train`; and how many
    chance gives: one of a question's answers."""
    counts = {}
    for text, answer in train:
        counts.setdefault(text, Counter())[answer] += 1
    known = [(text, answer) for text, answer in test if text in counts]
    right = sum(counts[text].most_common(1)[0][0] == answer for text, answer in known)
    chance = sum(1 / len(counts[text]) for text, _ in known)
    return right, chance, len(known)


def asked_about(numbers, split):
    made = [
        {"question": draft.question, "messages": [{"text": draft.text}], "answer": draft.answer, "split": split}
        for number in numbers
        for draft in drafted(number)
    ]
    keep = scene.balanced(made, 0)
    return [(row["messages"][0]["text"], row["answer"]) for number, row in enumerate(made) if number in keep]


def test_answering_without_looking_is_right_by_chance():
    train, test = asked_about(range(300), ""), asked_about(range(300, 500), "_held_out_scenes")
    assert len(train) > 1000 and len(test) > 500
    right, chance, count = best_blind(train, train)
    assert right == pytest.approx(chance), "on the very folder, the best blind answers are chance exactly"
    right, chance, count = best_blind(train, test)
    assert abs(right - chance) < 2.6 * math.sqrt(count * 0.25), "and on other scenes within its interval of 99 %"
    unbalanced = [(draft.text, draft.answer) for number in range(300) for draft in drafted(number)]
    right, chance, count = best_blind(unbalanced, unbalanced)
    assert right > chance + 2.6 * math.sqrt(count * 0.25), "what was not balanced gives itself away"


def test_every_wording_is_asked_and_held_out_ones_only_there():
    trained = {draft.text for number in range(40) for draft in drafted(number)}
    held_out = {draft.text for number in range(40) for draft in drafted(number, held_out=True)}
    assert ask("scene_count") in trained and ask("scene_count", draw=0.9) in trained
    assert ask("scene_count", held_out=True) in held_out and not trained & held_out


def test_other_sources_than_a_simulator_are_refused(tmp_path):
    config = recorded(tmp_path)
    config.texts.questions = ["scene"]
    run(config, "filter")
    config.read.format = "npz"
    with pytest.raises(UserError, match=r"questions names scene, which a simulator is asked for"):
        scene.facts(config, None, [])  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> ConstructConfig:
    """Two tasks of the quickstart with three demonstrations each, and the questions about their scenes."""
    root = tmp_path_factory.mktemp("real")
    tasks = ["window-open-v3", "handle-press-v3"]
    record = RecordConfig(tasks=tasks, episodes=3, image_size=96, frame_stride=3, fast=True, processes=2)
    config = ConstructConfig(
        read=ReadConfig(path=str(root / "episodes")), out_dir=str(root / "out"), record=record, shards=2
    )
    config.propose.min_clip_frames = 8
    config.texts.questions, config.texts.scenes = ["scene", "next"], 6
    config.texts.held_out_scenes = config.texts.held_out_wordings = 0.0
    run(config, "texts")
    return config


@pytest.mark.sim
@pytest.mark.slow
def test_scenes_of_recorded_episodes_are_the_simulators(real):
    facts = {row["key"]: row for row in Ledger(Path(real.out_dir) / scenes.LEDGER)}
    assert len(facts) == 6
    for key, row in facts.items():
        name, before, after = ("window", "closed", "open") if key.startswith("window") else ("handle", "up", "down")
        assert [(thing["name"], thing["state"]) for thing in row["start"]] == [(name, before)]
        assert [(thing["name"], thing["state"]) for thing in row["end"]] == [(name, after)]
        assert len(row["toys"]) == 6
        for things in row["toys"]:
            toys = [thing for thing in things if thing["colour"]]
            assert 1 <= len(toys) <= 4 and len({toy["colour"] for toy in toys}) == len(toys)
            assert all(0.2 < toy["place"][0] < 1.0 and abs(toy["place"][1]) < 0.5 for toy in toys), "on the table"
    written = rows(real).values()
    counts = Counter(row.question for row in written)
    assert counts["scene_state"] and counts["scene_count"] and counts["next"]
    states = Counter((row.turns[0].text, row.answer) for row in written if row.question == "scene_state")
    assert set(Counter(states.values())) <= {1, 2, 3} and len(states) % 2 == 0
    for row in written:
        if row.question == "scene_state":
            name, number = row.episode.rsplit("-", 1)
            source = read_episode(episode_path(Path(real.read.path), name, int(number)))
            (image,) = row.images
            assert bytes(image.jpeg) == source.frames("corner4", [image.t])[image.t]
            assert (image.t == 0) == (row.answer in ("closed", "up"))


@pytest.mark.sim
@pytest.mark.slow
def test_toys_are_seen_where_their_facts_say(real):
    """An image with a toy differs from the recorded one around as many pixels as the facts count."""
    facts = {row["key"]: row for row in Ledger(Path(real.out_dir) / scenes.LEDGER)}
    for key, row in facts.items():
        task, number = key.rsplit("-", 1)
        source = read_episode(episode_path(Path(real.read.path), task, int(number)))
        clean = simplejpeg.decode_jpeg(source.frames("corner4", [0])[0]).astype(int)
        images = scenes.toy_images(Path(real.out_dir) / scenes.IMAGES / f"{key}.npz")
        for place, things in enumerate(row["toys"]):
            changed = np.abs(simplejpeg.decode_jpeg(images["corner4", place]).astype(int) - clean).max(axis=2) > 24
            told = sum(thing["pixels"] for thing in things)
            assert 0.5 * told - 20 < changed.sum() < 1.6 * told + 60, (key, place)


@pytest.mark.sim
@pytest.mark.slow
def test_scenes_are_looked_at_once_and_a_replay_that_differs_is_said(real, tmp_path):
    stamp = (Path(real.out_dir) / scenes.LEDGER).stat().st_mtime_ns
    run(real, "texts")
    assert (Path(real.out_dir) / scenes.LEDGER).stat().st_mtime_ns == stamp
    path = episode_path(Path(real.read.path), "window-open-v3", 1000)
    source = read_episode(path)
    assert source.executed is not None
    broken = tmp_path / "window-open-v3" / "001000.npz"
    write_episode(broken, replace(source, executed=np.zeros_like(source.executed)))
    job = scenes.SceneJob(broken, real.record, 95, 0, 0, tmp_path / "images.npz")
    with pytest.raises(UserError, match="does not lead to its recorded states"):
        scenes.look(job)
