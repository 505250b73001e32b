"""Why: whoever proposes spans, a language model above all, answers with times that overlap, lie outside the episode or
carry unknown labels. What gets through must be usable as it stands, and nothing may vanish without a word."""

import numpy as np
import pytest

from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.propose.spans import coverage, snap, validate


def span(start, end, primitive="move", status="EMPTY"):
    return Proposal(start, end, primitive, status, "move left", (0.0, 0.1, 0.0))


@pytest.mark.parametrize(
    ("proposals", "edges", "faults"),
    [
        ([span(0, 40), span(40, 100)], [(0, 40), (40, 100)], []),
        ([span(40, 100), span(0, 40)], [(0, 40), (40, 100)], []),  # another order loses nothing
        ([span(0, 43), span(40, 100)], [(0, 40), (40, 100)], []),  # a little overlap is cut back
        ([span(0, 50), span(40, 100)], [(0, 50)], ["frames 40 to 100: overlaps `move` of frames 0 to 50"]),
        ([span(0, 50), span(0, 90)], [(0, 50)], ["overlaps"]),
        ([span(0, 5), span(3, 100)], [(0, 5)], ["overlaps"]),  # cut back it would be too short
        ([span(0, 40), span(38, 41)], [(0, 40)], ["3 frames, fewer than 5"]),  # and the first keeps its end
        ([span(-2, 40), span(40, 103)], [(0, 40), (40, 100)], []),  # rounding of seconds
        ([span(-4, 40)], [], ["outside the episode's 100 frames"]),
        ([span(40, 104)], [], ["outside"]),
        ([span(40, 44)], [], ["fewer than 5"]),
        ([span(40, 30)], [], ["fewer than 5"]),
        ([span(10, 20, "juggle")], [], ["`juggle` is not an atomic action"]),
        ([], [], []),
    ],
)
def test_which_spans_can_be_used(proposals, edges, faults):
    kept, rejected = validate(proposals, frames=100, min_frames=5, slack=3)
    assert [(item.start, item.end) for item in kept] == edges
    assert len(rejected) == len(faults)
    assert all(fault in sentence for fault, sentence in zip(faults, rejected, strict=True))


def test_aliases_become_what_they_mean():
    spans = [span(0, 10, "Rotate"), span(10, 20, "release"), span(20, 30, "reorient"), span(30, 40, "wait")]
    kept, _ = validate(spans, 100, 5, 0)
    assert [item.primitive for item in kept] == ["rotate_free", "place", "reorient_free", "wait"]


def test_random_answers_come_out_usable_and_none_is_lost():
    draws = np.random.default_rng(0)
    for _ in range(200):
        proposals = [span(int(start), int(start + length)) for start, length in draws.integers(-10, 60, (8, 2))]
        kept, rejected = validate(proposals, 60, 5, 4)
        assert len(kept) + len(rejected) == len(proposals)
        frames = [frame for item in kept for frame in range(item.start, item.end)]
        assert frames == sorted(set(frames)), "no frame twice"
        assert all(item.start >= 0 and item.end <= 60 and item.end - item.start >= 5 for item in kept)
        assert coverage(kept, 60) == pytest.approx(len(frames) / 60)


@pytest.mark.parametrize(("frame", "stride", "nearest"), [(7, 1, 7), (7, 4, 8), (5, 4, 4), (0, 3, 0)])
def test_starts_have_a_image(frame, stride, nearest):
    assert snap(frame, stride) == nearest
