"""Why: a policy that writes is played by what its text is read as. A text that is misread moves a robot, one that
raises stops a rollout, and a codec that is not exact puts a ceiling under every success rate without anyone seeing it.
So every codec comes back exactly on its own grid, and any string gives either a motion or a reason."""

import json
import random
import string
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from la4vla.action_text.action_text import CODECS, ActionText
from la4vla.action_text.codec import FARTHEST
from la4vla.action_text.config import ActionTextConfig
from la4vla.action_text.fast import Fast, FastSettings
from la4vla.action_text.motion import Motion
from la4vla.sim import libero, metaworld
from la4vla.types import UserError

MANGLED = 10_000


def motions(rows: int = 8):
    number = st.floats(-0.2, 0.2, allow_nan=False).map(lambda value: round(value, 5))
    row = st.tuples(*[number] * 6, st.sampled_from([0.0, 1.0]))
    return st.lists(row, min_size=1, max_size=rows).map(
        lambda rows: Motion.of([r[:3] for r in rows], [r[6] for r in rows], [r[3:6] for r in rows])
    )


@cache
def action_text(name: str) -> ActionText:
    """Of LIBERO's robot, which moves, turns and grasps."""
    clips = [commands(seed) for seed in range(12)]
    return ActionText.fitted(ActionTextConfig(codec=name), libero.EMBODIMENT, clips, vocabulary=300)


def commands(seed: int, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    phases = draws.uniform(0, 6, (1, 6)) + np.linspace(0, 3, steps)[:, None]
    actions = np.concatenate([np.sin(phases), np.where(np.arange(steps) < 25, -1.0, 1.0)[:, None]], axis=1)
    return np.zeros((steps, 7), np.float32), actions.astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=150, deadline=None)
@given(motions())
@example(Motion.of([[0.0005, -0.0005, 0.0]] * 5, [1.0] * 5))
def test_a_motion_on_the_grid_comes_back_to_the_bit(name, motion):
    codec = action_text(name).codec
    grid = codec.decode(codec.encode(motion).text).motion
    assert grid is not None
    again = codec.encode(grid)
    assert codec.decode(again.text).motion.equals(grid)
    if name != "fast":
        assert again.text == codec.encode(motion).text


@pytest.mark.parametrize(("name", "step_m", "step_rad"), [("decimals", 0.001, None), ("sentence", 0.01, np.pi / 18)])
@settings(max_examples=100, deadline=None)
@given(motions(rows=20))
def test_rounding_never_adds_up(name, step_m, step_rad, motion):
    """Or whole centimetres would lose every slow motion."""
    codec = action_text(name).codec
    grid = codec.decode(codec.encode(motion).text).motion
    assert len(grid) == len(motion) and (grid.open_R == motion.open_R).all()
    off_R3 = np.cumsum(grid.move_R3, 0) - np.cumsum(motion.move_R3, 0)
    assert np.abs(off_R3).max() <= step_m / 2 + 1e-6
    if step_rad:
        assert np.abs(np.cumsum(grid.turn_R3, 0) - np.cumsum(motion.turn_R3, 0)).max() <= step_rad / 2 + 1e-6


def test_fast_keeps_the_gripper_and_nearly_all_of_the_motion():
    action = action_text("fast")
    for seed in (100, 101):
        motion = action.space.steps(*commands(seed)).motion
        back = action.codec.decode(action.codec.encode(motion).text).motion
        assert len(back) == 48 and (back.open_R[:40] == motion.open_R).all() and (back.open_R[40:] == 0).all()
        assert np.abs(back.move_R3[:40] - motion.move_R3).max() < 0.2 * 0.05
    assert 161 < action.codec.size <= 300 and len(set(action.tokens)) == action.codec.size


def test_the_texts_are_those_of_the_paper_and_of_lap():
    motion = Motion.of([[-0.002, -0.004, -0.023], [0.001, -0.003, 0.031]], [1.0, 0.0], [[0, 0, 0], [0.36, 0, -0.2]])
    written = action_text("decimals").codec.encode(motion)
    assert written.text == "[[-0.002, -0.004, -0.023, 1.0], [0.001, -0.003, 0.031, 0.0]]"
    assert written.dropped == {"rotation": 1}
    written = action_text("sentence").codec.encode(motion)
    assert written.text == (
        "move down 2 cm, open gripper; move right 1 cm, move up 3 cm, tilt right 20 degrees, turn right 10 degrees, "
        "close gripper"
    )
    assert not written.dropped
    gemma = tuple(f"<unused{6133 + digit}>" for digit in range(10))
    tokens = ActionText.open(ActionTextConfig(codec="tokens", settings={"digits": gemma}), metaworld.EMBODIMENT)
    # the first number of the paper's example (B.3)
    assert tokens.codec.encode(motion).text.startswith("[[-<unused6133>.<unused6133><unused6133><unused6135>, ")
    assert tokens.tokens == gemma


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("decimals", "", "is empty"),
        ("decimals", "I would move the arm up.", "not a list of lists"),
        ("decimals", "Sure: [[0.0, 0.0, 0.01, 1.0]]", "not a list of lists"),
        ("decimals", "[[0.0, 0.0, 0.01]]", "row 1 has 3 numbers, not 4"),
        ("decimals", "[[0.0, 0.0, 0.01, 1.0], [0.0, 0.0", "not a list of lists"),
        ("decimals", "[[0.0, 0.0, NaN, 1.0]]", "`NaN`, which is no number"),
        ("decimals", "[[0.0, 0.0, 1e-2, 1.0]]", "`1e-2`, which is no number"),
        ("decimals", "[[0.0, 0.0, 5.1, 1.0]]", "moves further than 0.5 m"),
        ("decimals", "[[0.0, 0.0, 0.01, 0.7]]", "neither 1 nor 0"),
        ("decimals", "[[0.0, 0.0, \u0661, 1.0]]", "which is no number"),
        ("decimals", "[" * 5000 + "]" * 5000, "which is no number|numbers, not 4"),
        ("decimals", "[[0,0,0,1]" + ",[0,0,0,1]" * 1000 + "]", "more than 1000 rows"),
        ("tokens", "[[0.0, 0.0, 0.0, 1.0]]", "digits that are none of the codec's tokens"),
        ("tokens", "[[<digit_0>, <digit_0>, <digit_11>, <digit_1>]]", "digits that are none|no number"),
        ("sentence", "move up", "row 1 says `move up`"),
        ("sentence", "move up 3 cm", "does not say whether the gripper"),
        ("sentence", "open gripper, move up 3 cm, move down 1 cm", "two things of one direction"),
        ("sentence", "open gripper, close gripper", "two things of one direction"),
        ("sentence", "open gripper, move up 3 degrees", "no motion"),
        ("sentence", "open gripper, tilt up 30 degrees", "no motion"),
        ("sentence", "open gripper, move up 51 cm", "further than 0.5 m"),
        ("sentence", "open gripper; ; stay", "row 2 says ``"),
        ("fast", "<fast_0>", "coefficients"),
        ("fast", "<fast_99999>", "which the vocabulary lacks"),
        ("fast", "<fast_0> hello", "none of the codec's tokens"),
    ],
)
def test_what_is_no_action_text_has_a_reason(name, text, reason):
    parsed = action_text(name).codec.decode(text)
    assert parsed.motion is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(parsed.reason)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("decimals", "```python\n[[0.0, 0.0, 0.04, 1.0]]\n```"),
        ("decimals", "[[0,0,.04,1],]"),
        ("sentence", "Move up 4 cm,  open gripper."),
        ("tokens", "[[<digit_0> , <digit_0>,<digit_0> .<digit_0> <digit_4>, <digit_1>]]"),
    ],
)
def test_spelling_that_changes_no_meaning_is_read(name, text):
    assert action_text(name).codec.decode(text).motion.equals(Motion.of([[0, 0, 0.04]], [1.0]))


def mangle(text: str, letters: str, draws: random.Random) -> str:
    """A text that a model might have written in its place: letters lost, doubled, swapped, replaced, cut off, glued."""
    kind = draws.randrange(7)
    at, other = draws.randrange(len(text) + 1), draws.randrange(len(text) + 1)
    some = "".join(draws.choices(letters, k=draws.randrange(1, 6)))
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[: min(at, other)] + text[max(at, other) :]
    if kind == 2:
        return text[:at] + some + text[at:]
    if kind == 3:
        return text[:at] + text[other:]
    if kind == 4:
        return text[:at] + some + text[at + len(some) :]
    if kind == 5:
        return some
    return text + text[at:other]


@pytest.mark.parametrize("name", CODECS)
def test_ten_thousand_mangled_texts_give_a_motion_or_a_reason(name):
    action, draws = action_text(name), random.Random(0)
    texts = [action.write(*commands(seed)).text for seed in range(20)]
    letters = string.printable + "\u00e9\u4e00\u0663\x00\ud800" + "".join(action.tokens[:3])
    motions = reasons = 0
    for _ in range(MANGLED):
        text = draws.choice(texts)
        for _ in range(draws.randrange(1, 4)):
            text = mangle(text, letters, draws)
        parsed = action.read(text)
        assert (parsed.motion is None) == bool(parsed.reason), text
        if parsed.motion is None:
            reasons += 1
            continue
        motions += 1
        motion = parsed.motion
        assert 0 < len(motion) <= 1000 and np.abs(motion.move_R3).max() <= FARTHEST, text
        assert np.isfinite(motion.turn_R3).all() and np.isin(motion.open_R, (0, 1)).all(), text
        # What was read is what the text says: writing it gives a text that says the same.
        assert action.codec.decode(action.codec.encode(motion).text).motion is not None
        if len(motion) < 40:
            raw = action.play(motion, np.zeros(7, np.float32), None)
            assert np.isfinite(raw).all() and np.abs(raw).max() <= 1 + 1e-6
    assert reasons > MANGLED / 2 and motions > 20


@settings(max_examples=300, deadline=None)
@given(st.text(), st.sampled_from(CODECS))
def test_any_string_gives_a_motion_or_a_reason(text, name):
    parsed = action_text(name).codec.decode(text)
    assert (parsed.motion is None) == bool(parsed.reason)


@pytest.mark.parametrize("name", CODECS)
def test_a_manifest_rebuilds_the_codec(name):
    action = action_text(name)
    stored = json.loads(json.dumps(action.to_dict()))
    again = ActionText.from_dict(stored, libero.EMBODIMENT)
    states, actions = commands(7)
    assert again.write(states, actions) == action.write(states, actions)
    assert again.tokens == action.tokens and again.to_dict() == action.to_dict()
    with pytest.raises(UserError, match=f"version 99 of `{name}`"):
        ActionText.from_dict({**stored, "version": 99}, libero.EMBODIMENT)


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="`digits` is no setting of decimals; use some of places"):
        ActionText.open(ActionTextConfig(settings={"digits": "0123456789"}), metaworld.EMBODIMENT)
    with pytest.raises(UserError, match="`places` is three; give a whole number from 1 to 6"):
        ActionText.open(ActionTextConfig(codec="tokens", settings={"places": "three"}), metaworld.EMBODIMENT)
    with pytest.raises(UserError, match="ten different names"):
        ActionText.open(ActionTextConfig(codec="tokens", settings={"digits": ["<a>"] * 10}), metaworld.EMBODIMENT)
    with pytest.raises(UserError, match="`fast` has no vocabulary yet"):
        ActionText.open(ActionTextConfig(codec="fast"), metaworld.EMBODIMENT)
    with pytest.raises(UserError, match=r"`merge.far` is no setting"):
        ActionTextConfig.from_dict({"merge": {"far": 1}})
    with pytest.raises(UserError, match="three different axes"):
        ActionTextConfig(forward="+x", left="-x")
    with pytest.raises(UserError, match="too small; give at least 161"):
        Fast.fit([Motion.of([[0, 0, 0]], [1.0])], 100, True, False, FastSettings())
