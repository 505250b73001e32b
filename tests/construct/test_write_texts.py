"""Why: a conversation is only as true as the images beside it. Images here carry their frame's number as a grey level,
so that each question can be held against the frames that it is about. Also: a second run does nothing, a changed
setting changes only what it must, and what is held out is nowhere in the training folder."""

import ast
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.construct.__main__ import main, run
from la4vla.construct.ledger import Ledger
from la4vla.construct.readers import open_dataset
from la4vla.construct.report import page
from la4vla.construct.steps import KEPT
from la4vla.data.setup import prepare_texts
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_texts
from la4vla.data.shards.texts import read_about
from la4vla.questions.wordings import ask, turns, wordings
from la4vla.train.learners.texts import codec_of
from la4vla.types import UserError
from tests.construct.recorded import FRAMES, STRIDE, episode, recorded
from tests.fixtures import WordEncoder, train_config


@pytest.fixture
def config(tmp_path):
    made = recorded(tmp_path)
    made.texts.held_out_scenes = 0.0
    made.texts.held_out_wordings = 0.0
    return made


def rows(config, split=""):
    """The rows of a folder, by key."""
    index = read_index(Path(config.out_dir) / f"{config.texts.folder}{split}", "texts")
    return {row.key: row for shard in range(len(index.shards)) for row in read_texts(index, shard)}


def of(config, question, split=""):
    return [row for row in rows(config, split).values() if row.question == question]


def frames(row):
    """The frames that a row's images say they are."""
    return [round(simplejpeg.decode_jpeg(bytes(image.jpeg)).mean() / 2) for image in row.images]


def kept(config):
    return {row["key"]: row["kept"] for row in Ledger(Path(config.out_dir) / KEPT)}


def test_every_question_is_about_the_frames_it_shows(config):
    run(config, "texts")
    clips = kept(config)
    assert {question: len(of(config, question)) for question in config.texts.questions} == {
        "subtasks": 4,
        "completion": 24,
        **dict.fromkeys(("next", "plan", "actions", "direction"), 12),
    }
    for row in rows(config).values():
        assert [frame for _, frame in ((image.view, image.t) for image in row.images)] == frames(row)
        assert row.episode in clips and row.task == "Pick and place a puck to a goal"
    for row in of(config, "subtasks"):
        assert ast.literal_eval(row.answer) == [item["instruction"] for item in clips[row.episode]]
        assert frames(row) == [0] and "task 'Pick and place a puck to a goal', starting" in row.turns[0].text
    for question in ("next", "plan", "actions", "direction"):
        for row in of(config, question):
            clip = next(item for item in clips[row.episode] if item["start"] == row.span[0])
            assert row.span == (clip["start"], clip["end"]) and frames(row) == [clip["start"]]
            assert row.instruction == clip["instruction"]
    assert {row.answer == row.instruction for row in of(config, "next")} == {True}
    assert all(f"subtask '{row.instruction}'" in row.turns[0].text for row in of(config, "direction"))


def test_plans_and_directions_are_the_motion(config):
    """The made-up episodes go 20 cm forward, 20 cm down and 20 cm left. They command the gripper to close, but for the
    very first command of number 1001, which is to hold what is open."""
    run(config, "texts")
    said = {"forward": "forward (+dx)", "down": "downward (-dz)", "left": "left (+dy)"}
    for row in of(config, "plan"):
        words = [said[word] for word in ("forward", "down", "left") if word in row.instruction]
        closes = row.episode.endswith("1001") and row.span[0] == 0
        assert row.answer.startswith(f"Primarily {words[0]}")
        assert row.answer.endswith("Close gripper (0)." if closes else "Gripper remains closed (0).")
        assert row.turns[0].text == ask("plan", subtask=row.instruction)
    directions = Counter(row.answer.split(", ")[0] for row in of(config, "direction"))
    assert directions == {"forward": 4, "down": 4, "left": 4}


def test_the_threshold_decides_what_is_named(config):
    config.texts.threshold = 0.5
    config.texts.questions = ["plan", "direction"]
    run(config, "texts")
    assert {row.answer for row in of(config, "direction")} == {"none"}
    assert {row.answer.partition(". ")[0] for row in of(config, "plan")} == {"Hardly any movement"}


def test_completion_shows_the_pair_that_its_answer_is_about(config):
    run(config, "texts")
    answers = Counter(row.answer for row in of(config, "completion"))
    assert answers == {"yes": 12, "no": 12}
    kinds = Counter()
    made = {item["key"]: item["about"] for row in ledger(config) for item in row["rows"]}
    for row in of(config, "completion"):
        start, end = row.span
        first, last = frames(row)
        done = min(end, FRAMES - 1) // STRIDE * STRIDE
        kinds[made[row.key]] += 1
        if made[row.key] == "unfinished":
            assert first == start and start < last < start + (end - start) / 2
        elif made[row.key] == "reversed":
            assert (first, last) == (done, start)
        else:
            assert (first, last) == (start, done)
            own = f"subtask '{row.instruction}'" in row.turns[0].text
            assert own == (made[row.key] == "done") == (row.answer == "yes")
    assert kinds["done"] == 12 and kinds["unfinished"] >= 3 and kinds["reversed"] >= 3


def ledger(config):
    return list(Ledger(Path(config.out_dir) / f"{config.texts.folder}.texts.jsonl"))


def test_actions_are_the_codecs_text_of_the_clip(config):
    run(config, "texts")
    about = read_about(Path(config.out_dir) / "texts")
    assert about["action_text"]["codec"] == "decimals" and about["action_text"]["forward"] == "+y"
    for row in of(config, "actions"):
        listed = np.array(ast.literal_eval(row.answer))
        source = episode(int(row.episode.rsplit("-", 1)[1]))
        start, end = row.span
        commanded = source.action[start:end, :3].astype(float).sum(0) * 0.01  # 1 cm of target motion
        assert np.allclose(listed[:, :3].sum(0), [commanded[1], -commanded[0], commanded[2]], atol=0.0015)
        plan = next(item.answer for item in of(config, "plan") if (item.episode, item.span) == (row.episode, row.span))
        assert row.turns[0].text == ask("actions", "decimals", subtask=row.instruction, plan=plan)


def test_a_run_finds_the_codec_in_the_folder_wherever_that_lies(config, tmp_path):
    run(config, "texts")
    shutil.copytree(Path(config.out_dir) / "texts", tmp_path / "elsewhere" / "copied")
    config.texts.folder, config.texts.codec = "other", {"codec": "sentence"}
    run(config, "texts")

    def codec(*folders):
        sources = {folder.name: (folder, "text") for folder in folders}
        return codec_of(prepare_texts(train_config(sources, streams=2), WordEncoder()).texts)

    copied, other = tmp_path / "elsewhere" / "copied", Path(config.out_dir) / "other"
    assert codec(copied) == read_about(copied)["action_text"] and codec(copied)["codec"] == "decimals"
    with pytest.raises(UserError, match="other writes actions otherwise"):
        codec(copied, other)
    config.texts.folder, config.texts.questions = "plain", ["next"]
    run(config, "texts")
    plain = Path(config.out_dir) / "plain"
    assert codec(plain) == {} and codec(plain, other)["codec"] == codec(other, plain)["codec"] == "sentence"


def test_the_next_step_is_asked_as_the_paper_asks_it(config):
    """The prompt of GPLA's Fig. 6 to the letter, and the one that policies use."""
    config.texts.questions = ["next", "next_system"]
    run(config, "texts")
    plain, told = of(config, "next"), of(config, "next_system")
    assert sorted(row.answer for row in told) == sorted(row.answer for row in plain) and len(told) > 1
    for row in told:
        system, user, _ = row.turns
        task = episode(int(row.episode.rsplit("-", 1)[1])).instruction.removesuffix(".")
        assert system.text == f"You are controlling a robotic agent. Your task is to {task}."
        assert user.text == "What should the robot do next?" and user.images == (0,)
        assert row.turns[:2] == turns("next_system", (0,), task=task)


def test_actions_without_a_plan_and_with_the_hand(config):
    config.texts.questions, config.texts.plan, config.texts.hand = ["actions"], False, True
    config.texts.codec = {"codec": "sentence"}
    run(config, "texts")
    for row in of(config, "actions"):
        x, y, z, _ = episode(int(row.episode.rsplit("-", 1)[1])).state[row.span[0]]
        asked = ask("direct", "sentence", subtask=row.instruction)
        hand = f"{round(100 * y)} cm forward, {round(-100 * x)} cm left, {round(100 * z)} cm up, gripper 1."
        assert row.turns[0].text == f"{asked} The hand is at {hand}"


def test_a_subtask_is_asked_about_on_its_way_too(config):
    config.texts.questions, config.texts.every = ["direction", "next"], 9
    run(config, "texts")
    clips = kept(config)
    assert len(of(config, "next")) == sum(map(len, clips.values()))
    expected = {
        (key, start, item["end"])
        for key, items in clips.items()
        for item in items
        for start in range(item["start"], item["end"], 9)
    }
    assert {(row.episode, *row.span) for row in of(config, "direction")} == expected
    assert all(frames(row) == [row.span[0]] for row in of(config, "direction"))


def test_what_is_held_out_is_not_trained_on(config):
    config.texts.held_out_scenes, config.texts.held_out_wordings, config.seed = 0.4, 0.5, 2
    config.texts.questions = ["next", "direction"]
    run(config, "texts")
    trained, scenes, words = (rows(config, split) for split in ("", "_held_out_scenes", "_held_out_wordings"))
    assert trained and scenes and words
    episodes = [{row.episode for row in split.values()} for split in (trained, scenes, words)]
    assert not episodes[0] & episodes[1] and episodes[2] <= episodes[0]
    assert words.keys() < trained.keys()
    for key, row in words.items():
        assert row.answer == trained[key].answer and row.turns[0].text != trained[key].turns[0].text
        fields = {"task": "Pick and place a puck to a goal", "subtask": row.instruction}
        assert row.turns[0].text in [text.format(**fields) for text in wordings(row.question, held_out=True)]
    assert not {row.turns[0].text for row in words.values()} & {row.turns[0].text for row in trained.values()}


def test_a_second_run_does_nothing_and_a_setting_remakes_what_it_changes(config, capsys):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in Path(config.out_dir).rglob("*") if path.is_file()}

    run(config, "texts")
    assert re.search(r"subtasks +4 +0 +0\n", capsys.readouterr().out)
    first = stamps()
    run(config, "texts")
    assert stamps() == first and "up to date" in capsys.readouterr().out
    before = rows(config)
    config.texts.folder, config.texts.codec = "texts_sentence", {"codec": "sentence"}
    run(config, "texts")
    after = rows(config)
    assert {path: stamp for path, stamp in stamps().items() if path in first} == first
    changed = {key for key in before if before[key].answer != after[key].answer}
    assert changed == {row.key for row in before.values() if row.question == "actions"}


def test_an_interrupted_run_goes_on(config, monkeypatch):
    from la4vla.construct.texts import write

    run(config, "filter")
    calls = []
    real = write._row

    def until_third(*arguments):
        calls.append(arguments[1].key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(write, "_row", until_third)
    with pytest.raises(KeyboardInterrupt):
        run(config, "texts")
    assert len(ledger(config)) == 2 and not (Path(config.out_dir) / "texts").exists()
    run(config, "texts")
    assert len(calls) == 5, "the two that were done are not made again"
    assert len(of(config, "subtasks")) == 4


def test_texts_are_counted_in_the_report(config):
    run(config, "texts")
    path = page.write(config, open_dataset(config))
    numbers = json.loads((path.parent / "report.json").read_text())["texts"]
    assert numbers["texts"]["counts"]["completion"] == {"trained": 24}
    assert numbers["texts"]["completion"]["done"] == 12
    assert "Conversations" in path.read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"questions": ["nxt"]}, "texts.questions: `nxt` is not one of"),
        ({"folder": "a/b"}, "texts.folder"),
        ({"annotator": "people"}, "texts.annotator: `people`"),
        ({"views": ["wrist"]}, "texts.views: `wrist` is no camera of the episodes; they have corner4"),
        ({"codec": {"codec": "semaphore"}}, "codec is `semaphore`"),
    ],
)
def test_bad_settings_are_one_sentence(config, tmp_path, change, sentence):
    from la4vla.config.construct import validate_construct

    for name, value in change.items():
        setattr(config.texts, name, value)
    with pytest.raises(UserError, match=sentence):
        validate_construct(config)
        run(config, "texts")


def test_the_command_takes_the_step(config, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"schema: construct\nout_dir: {config.out_dir}\nread: {{path: {config.read.path}}}\nshards: 2\n"
        "record: {tasks: [pick-place-v3], episodes: 4}\npropose: {min_clip_frames: 8}\n"
        "texts: {questions: [next], held_out_scenes: 0}\n"
    )
    assert main(["texts", str(path)]) == 0
    assert "next" in capsys.readouterr().out
    assert not (Path(config.out_dir) / "la").exists(), "shards of clips are another step"
