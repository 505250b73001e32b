"""Why: Figure 5 compares three models, and each must show its own points, real scorers behind one command."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.hierarchy.embeddings import FIGURE, NUMBERS
from la4vla.types import UserError


def test_the_three_models_of_the_figure(run, public, pairs, tmp_path, capsys):
    three = [str(run), f"clip:{public / 'clip'}", f"siglip:{public / 'siglip'}"]
    named = [word for spec in three for word in ("--scorer", spec)]
    assert main(["embeddings", str(pairs / "clips"), *named, "--steps", "2", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / NUMBERS).read_text())
    assert list(numbers["models"]) == ["grounding", "CLIP", "SigLIP 2"] and not numbers["left_out"]
    first = {name: next(iter(set(one["points"]) - {"sentences"})) for name, one in numbers["models"].items()}
    assert first == {"grounding": "images and actions", "CLIP": "images", "SigLIP 2": "images"}
    sentences = {one["points"]["sentences"] for one in numbers["models"].values()}
    assert len(sentences) == 1 and sentences.pop() < numbers["models"]["CLIP"]["points"]["images"]  # each once
    assert "CLIP" in capsys.readouterr().out and b"<svg" in (tmp_path / FIGURE).read_bytes()


def test_rules_have_no_points(pairs, tmp_path):
    spec = f"rules:{pairs / 'clips'}@+y,-x,+z"
    with pytest.raises(UserError, match="embeds nothing"):
        main(["embeddings", str(pairs / "clips"), "--scorer", spec, "--out", str(tmp_path)])
