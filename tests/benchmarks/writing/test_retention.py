"""Why: "nothing was forgotten" is only said by questions that the model answered before, that cannot be answered
without looking, and that are the same before and after. A model that was taught the answers must score them, and lose
its score where it is blind."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import save_file

from benchmarks.__main__ import main
from benchmarks.writing.models import answered, open_model, read_rows
from benchmarks.writing.retention import RetentionRequest, choices_of, measure
from la4vla import manifest
from la4vla.config import ModelConfig
from la4vla.data.shards.texts import StoredImage, TextRecord
from la4vla.model import weights
from la4vla.model.policy import build_policy
from la4vla.serve.policy import file_sha256
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Turn, UserError
from la4vla.vlm.load import build_vlm, save_vlm
from tests.fixtures import write_texts
from tests.hand_checkpoint import write_checkpoint, write_vlm_checkpoint

COLOURS = {"red": (230, 30, 30), "blue": (30, 30, 230)}


def asked(number, kind, question, answer, level):
    jpeg = simplejpeg.encode_jpeg(np.full((112, 112, 3), level, np.uint8), quality=95)
    turns = (Turn("user", question, (0,)), Turn("assistant", answer))
    return TextRecord(f"row-{number:03d}", turns, (StoredImage("front", 0, jpeg),), kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Colours that the image shows, sides that it does not, and a question whose answers are never twice the same."""
    rows = []
    for number in range(20):
        name = list(COLOURS)[number % 2]
        rows += [
            asked(3 * number, "scene_colour", "what colour is it?", name, COLOURS[name]),
            asked(3 * number + 1, "scene_side", "left or right?", ("left", "right")[number // 2 % 2], 100),
            asked(3 * number + 2, "scene_open", "how many?", f"{number}", 100),
        ]
    path = tmp_path_factory.mktemp("scenes") / "texts"
    write_texts(path, rows, shards=2)
    return path


@pytest.fixture(scope="module")
def taught(folder, tmp_path_factory):
    """A tiny model that learned the colours, in a folder of transformers."""
    vlm, encoder = build_vlm("tiny_vlm", seed=0)
    rows = [row for row in read_rows(folder, ["scene_"]) if row.question != "scene_open"]
    batch = encoder.batch([encoder.prepare(row) for row in rows])
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=2e-3)
    torch.manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        loss, counted = vlm.train()(batch)
        (loss / counted).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("taught") / "model"
    save_vlm(vlm, encoder, path)
    return path


def test_only_questions_with_few_answers_are_asked(folder):
    choices = choices_of(read_rows(folder, ["scene_"]))
    assert {choice.answers for choice in choices} == {("blue", "red"), ("left", "right")}
    assert all(choice.answers[choice.right] == choice.row.answer for choice in choices)
    rows = read_rows(folder, ["scene_open"])
    with pytest.raises(UserError, match="name types"):
        choices_of([replace(row, turns=(Turn("user", row.key, (0,)), row.turns[-1])) for row in rows])


def test_an_answer_is_scored_as_a_plain_forward_does(folder):
    model = open_model("tiny_vlm")
    rows = read_rows(folder, ["scene_side", "scene_colour"], 5)
    rows = [answered(row, text) for row in rows for text in ("red", "left or right")]
    for row, total in zip(rows, model.totals(rows), strict=True):
        loss, _ = model.module(model.encoder.batch([model.encoder.prepare(row)]))
        assert total == pytest.approx(-loss.item(), abs=1e-3)


def test_what_was_learned_is_seen_and_its_loss_is_said(folder, taught, tmp_path, capsys):
    command = [
        "retention",
        str(folder),
        str(taught),
        "tiny_vlm",
        "--out",
        str(tmp_path),
        "--questions",
        "scene_colour",
        "scene_side",
    ]
    assert main([*command, "--rows", "0"]) == 0
    assert "points" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "retention.json").read_text())
    before, after = numbers["rates"]
    assert numbers["chance"] == {"all": 0.5, "scene_colour": 0.5, "scene_side": 0.5}
    assert before["scene_colour"]["sees"]["value"] == 1.0 == before["scene_colour"]["writes"]["value"]
    assert before["scene_colour"]["blind"]["value"] == 0.5 == before["scene_side"]["sees"]["value"]
    assert after["scene_colour"]["sees"]["value"] == 0.5 and after["scene_colour"]["writes"]["value"] == 0.0
    assert numbers["seen"][0]["scene_colour"]["difference"] == 0.5
    lost = numbers["changes"][0]
    assert lost["scene_colour"]["difference"] == -0.5 and lost["scene_colour"]["p"] == pytest.approx(2 * 0.5**10)
    assert lost["scene_colour"]["kept"] == pytest.approx(0.0) and lost["scene_side"]["kept"] is None
    assert "scene_colour" in (tmp_path / "retention.html").read_text()


def test_a_policy_without_a_language_head_is_asked_through_that_of_the_model_it_began_as(folder, tmp_path):
    """Before a step of training it knows what that one knows, to rounding."""
    base = write_vlm_checkpoint(tmp_path / "base", EMBODIMENT, {}, seed=5)
    checkpoint = write_checkpoint(tmp_path / "policy", EMBODIMENT, ("corner4",))
    policy = build_policy(ModelConfig(preset="tiny", dropout=0.0), seed=1)
    weights.load(policy, str(base))
    save_file(policy.state_dict(), checkpoint / manifest.WEIGHTS)
    shutil.rmtree(checkpoint / manifest.TOKENIZER)
    shutil.copytree(base / manifest.TOKENIZER, checkpoint / manifest.TOKENIZER)
    described = manifest.read(checkpoint)
    replace(described, weights_sha256=file_sha256(checkpoint / manifest.WEIGHTS)).write(checkpoint)
    rows = read_rows(folder, ["scene_side", "scene_colour"], 6)
    with pytest.raises(UserError, match="name the model that it began as before it"):
        open_model(str(checkpoint))
    first = open_model(str(base))
    assert open_model(str(checkpoint), before=first).totals(rows) == pytest.approx(first.totals(rows), abs=2e-3)
    request = RetentionRequest(folder, [str(base), str(checkpoint)], tmp_path / "out", ["scene_side"], 6)
    numbers = measure(request)
    assert numbers["models"][0]["right"]["sees"] == numbers["models"][1]["right"]["sees"]
    assert "writes" not in numbers["models"][1]["right"] and "&ndash;" in request.page.read_text()
