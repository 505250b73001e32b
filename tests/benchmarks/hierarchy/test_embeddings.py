"""Why: the script of the paper's Figure 5 swaps its two clouds, so its colours may lie. Here a cloud that is known from
its shape must carry its own colour and its own name, and the numbers beside it must say what the shape is."""

import json
import re

import numpy as np
import pytest

from benchmarks.hierarchy.embeddings import COLOURS, FIGURE, NUMBERS, OTHER, embedded, gap_and_mixed, left_out, write
from la4vla.types import UserError

POINTS = 62


def clouds(apart, sentences=POINTS, first="sentences"):
    """Two clouds on the unit sphere, the sentences at the end of the first axis."""
    draw = np.random.Generator(np.random.Philox(0))
    made = {}
    for name, count, sign in (("sentences", sentences, 1.0), ("images and actions", POINTS, -1.0)):
        rows = draw.normal(size=(count, 8)) * 0.3
        rows[:, 0] += sign * apart
        made[name] = rows.astype(np.float32)
    return dict(sorted(made.items(), key=lambda item: item[0] != first))


def test_numbers_say_whether_clouds_are_apart_or_one():
    apart, one = ([rows / np.linalg.norm(rows, axis=1)[:, None] for rows in clouds(by).values()] for by in (3.0, 0.0))
    gap, mixed = gap_and_mixed(apart)
    assert gap > 1.8 and mixed == 0.0
    gap, mixed = gap_and_mixed(one)
    assert gap < 0.3 and mixed == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("first", ["sentences", "images and actions"])
def test_every_cloud_keeps_its_name_and_its_colour(first, tmp_path):
    model = embedded("model", clouds(3.0, sentences=POINTS // 2, first=first))
    assert {of: len(rows) for of, rows in model.maps.items()} == {
        "sentences": POINTS // 2,
        "images and actions": POINTS,
    }
    numbers = write([model], ["grounding"], tmp_path)
    assert (
        numbers["left_out"].keys() == {"CLIP", "SigLIP 2"} and json.loads((tmp_path / NUMBERS).read_text()) == numbers
    )
    drawn = re.findall(r'<use [^>]*style="fill: (#[0-9a-f]{6})', (tmp_path / FIGURE).read_text())
    assert drawn.count(COLOURS["sentences"]) == POINTS // 2 + 1  # and its point in the legend
    assert drawn.count(OTHER) == POINTS + 1


def test_what_is_not_at_hand_is_named():
    assert left_out(["clip", "siglip", "grounding"]) == {}
    assert "clip:FOLDER" in left_out(["grounding"])["CLIP"]
    with pytest.raises(UserError, match="give more than 90"):
        embedded("few", {name: rows[:40] for name, rows in clouds(1.0).items()})
