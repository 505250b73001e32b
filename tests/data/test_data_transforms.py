"""Why: every train/serve skew of the neighbours (normalisation key, rotation wrap, padding before normalising, view
order) is a transform applied on one side only. Here both sides are one chain, and it inverts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from la4vla.config import DataConfig
from la4vla.config.train import ACTIONS, FlowConfig
from la4vla.data.augment import CHANCE, NOISE, Look, apply_look, augment, augment_as_gpla, draw_gpla_look, draw_look
from la4vla.data.collate import collate, draw_flow
from la4vla.data.delta import delta_action
from la4vla.data.normalize import NEAR_CONSTANT, Normalize, beyond, compute_stats, near_constant, rare_dims
from la4vla.data.rotation import wrapped
from la4vla.data.transforms import (
    CleanInstruction,
    ResizeImages,
    SelectViews,
    build_chain,
    chain_from_dicts,
    chain_to_dicts,
)
from la4vla.rng import RngUse, generator
from la4vla.types import Embodiment, Sample, UserError
from tests.fixtures import ARM, POSE, SPEC, encode, image

AXIS_ANGLE = Embodiment(
    "turner",
    10.0,
    state=replace(POSE.state, rotation="axis_angle"),
    action=replace(POSE.action, rotation="axis_angle"),
)
TOOL = Embodiment("tool", 10.0, replace(AXIS_ANGLE.state, frame="tool"), replace(AXIS_ANGLE.action, frame="tool"))


def sample_of(state, action, states, valid=None, **more) -> Sample:
    return Sample(
        kind=more.pop("kind", "la"),
        key="test/clip/0",
        instruction="Do it.",
        state=state,
        action=action,
        action_valid=np.ones(SPEC.horizon, bool) if valid is None else valid,
        state_mask=np.ones(len(state), bool),
        action_mask=np.ones(7, bool),
        action_states=states,
        **more,
    )


def chain_for(embodiment: Embodiment, action: str, mode: str = "min_max", views=("front", "wrist")):
    draw = np.random.Generator(np.random.Philox(5))
    state = draw.uniform(-4, 4, (500, 7)).astype(np.float32)
    values = draw.uniform(-4, 4, (500, 7)).astype(np.float32)
    stats = compute_stats(embodiment.state.names, state), compute_stats(embodiment.action.names, values)
    return build_chain(DataConfig(action=action, normalization=mode), embodiment, views, stats, SPEC)


SMALL = st.floats(-1.5, 1.5, width=32)
ROWS = arrays(np.float32, (SPEC.horizon, 7), elements=SMALL)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.sampled_from([POSE, AXIS_ANGLE, TOOL]), st.sampled_from(["min_max", "mean_std", "q01_q99"]))
def test_the_chain_inverts(action, states, embodiment, mode):
    for variant in ACTIONS:
        chain = chain_for(embodiment, variant, mode)
        out = chain(sample_of(states[0], action, states))
        assert out.action is not None and out.action.shape == (SPEC.horizon, SPEC.action_dim)
        assert out.action.dtype == out.state.dtype == np.float32
        back = chain.inverse(out.action, states)
        plain = [0, 1, 2, 6]
        np.testing.assert_allclose(back[:, plain], action[:, plain], atol=2e-5)
        clipped = mode != "mean_std" and np.abs(out.action[:, 3:6]).max() >= 1
        if embodiment is POSE or variant == "recorded":
            np.testing.assert_allclose(back[:, 3:6], action[:, 3:6], atol=2e-5)
        elif not clipped:
            turn = Rotation.from_rotvec(back[:, 3:6]) * Rotation.from_rotvec(action[:, 3:6]).inv()
            assert turn.magnitude().max() < 1e-4


def test_a_robot_that_tracks_is_followed_from_its_present_state():
    """With only the present state known, row t adds to what row t - 1 commanded."""
    for embodiment in (POSE, AXIS_ANGLE):
        delta = delta_action(embodiment, "delta_to_state")
        assert delta is not None
        draw = np.random.Generator(np.random.Philox(2))
        action = draw.uniform(-1, 1, (SPEC.horizon, 7)).astype(np.float32)
        states = np.concatenate([draw.uniform(-1, 1, (1, 7)), action[:-1]]).astype(np.float32)
        back = delta.inverse(delta.forward(action, states), states[0])
        np.testing.assert_allclose(back, action, atol=1e-5)


@pytest.mark.parametrize("embodiment", [POSE, AXIS_ANGLE])
def test_poses_come_back_in_the_numbers_they_were_given_in(embodiment):
    """Around a hand that points down; without `rotation_near` half of them would come back 2 pi away."""
    near = (3.1416, 0.0, 0.0)
    delta = delta_action(replace(embodiment, action=replace(embodiment.action, rotation_near=near)), "delta_to_state")
    assert delta is not None
    draw = np.random.Generator(np.random.Philox(3))
    states, action = (draw.uniform(-0.3, 0.3, (SPEC.horizon, 7)).astype(np.float32) for _ in range(2))
    states[:, 3] += np.pi
    action[:, 3] += np.pi
    np.testing.assert_allclose(delta.inverse(delta.forward(action, states), states), action, atol=1e-5)


@pytest.mark.parametrize("embodiment", [POSE, AXIS_ANGLE])
def test_deltas_are_small_where_angles_wrap(embodiment):
    """FACTS 5.3, B18: a roll near pi made outliers of 2 pi, and those made the scale."""
    delta = delta_action(embodiment, "delta_to_state")
    assert delta is not None
    before, after = np.zeros((1, 7), np.float32), np.zeros((1, 7), np.float32)
    before[0, 3], after[0, 3] = np.pi - 0.01, -np.pi + 0.01
    np.testing.assert_allclose(delta.forward(after, before)[0, 3], 0.02, atol=1e-5)
    back = delta.inverse(delta.forward(after, before), before[0])
    assert abs(wrapped(back[0, 3] - after[0, 3])) < 1e-5


def test_gripper_stays_absolute():
    delta = delta_action(POSE, "delta_to_state")
    assert delta is not None
    ones = np.ones((1, 7), np.float32)
    assert delta.forward(ones, ones)[0].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_delta_of_a_delta_is_refused():
    assert delta_action(ARM, "delta_to_state") is None
    stats = compute_stats(ARM.state.names, np.ones((3, 4))), compute_stats(ARM.action.names, np.ones((3, 4)))
    with pytest.raises(UserError, match=r"data\.action=recorded"):
        build_chain(DataConfig(action="delta_to_state"), ARM, (), stats, SPEC)


def test_padding_is_zero_and_masked_after_normalising():
    chain = chain_for(POSE, "recorded", "q01_q99")
    out = chain(sample_of(np.ones(7, np.float32), np.ones((6, 7), np.float32), np.ones((6, 7), np.float32)))
    assert out.state_mask.tolist() == [True] * 7 + [False] and out.action_mask.tolist() == [True] * 7 + [False]
    assert out.state[7] == 0 and (out.action[:, 7] == 0).all()


@pytest.mark.parametrize("mode", ["q01_q99", "min_max", "mean_std"])
@pytest.mark.parametrize("variant", ["recorded", "delta_to_state"])
def test_rows_past_the_end_are_zero(mode, variant):
    valid = np.arange(6) < 2
    out = chain_for(POSE, variant, mode)(
        sample_of(np.ones(7, np.float32), np.zeros((6, 7), np.float32), np.zeros((6, 7), np.float32), valid)
    )
    assert (out.action[2:] == 0).all()


@pytest.mark.parametrize("mode", ["q01_q99", "min_max"])
def test_bounded_modes_clip(mode):
    out = chain_for(POSE, "recorded", mode)(
        sample_of(np.full(7, 99, np.float32), np.full((6, 7), -99, np.float32), np.zeros((6, 7), np.float32))
    )
    assert (out.state[:7] == 1).all() and (out.action[:, :7] == -1).all()


@pytest.mark.parametrize("mode", ["q01_q99", "min_max", "mean_std"])
def test_near_constant_dims_do_not_explode(mode):
    """openpi#814: a near-constant dim normalised to -3200 and the loss followed."""
    values = np.zeros((100, 2))
    values[:, 0] = np.linspace(-1, 1, 100)
    values[:, 1] = 0.5 + NEAR_CONSTANT * np.linspace(-0.5, 0.5, 100)
    stats = compute_stats(("x", "y"), values)
    assert near_constant(mode, stats) == ["y"]
    normalize = Normalize(mode, stats, stats)
    state = np.array([0.0, 0.6], np.float32)
    out = normalize(replace(sample_of(state, None, None), state=state))
    assert abs(out.state[1]) < 0.2
    back = normalize.inverse(np.array([[0.0, 0.1], [1.0, -1.0]], np.float32), state)
    np.testing.assert_allclose(back[:, 1], 0.5, atol=NEAR_CONSTANT)  # what the model says of it is noise
    assert back[1, 0] > back[0, 0]


@pytest.mark.parametrize("mode", ["q01_q99", "min_max", "mean_std"])
def test_dims_that_others_statistics_clip_are_named(mode):
    draws = np.random.default_rng(0)
    narrow = compute_stats(("x", "y", "z"), draws.uniform(-1, 1, (1000, 3)))
    wide = compute_stats(("x", "y", "z"), draws.uniform(-1, 1, (1000, 3)) * (1.0, 1.5, 1.0) + (0.0, 0.0, -0.3))
    assert beyond(mode, narrow, narrow) == []
    assert beyond(mode, narrow, wide) == ([] if mode == "mean_std" else ["y", "z"])
    assert beyond(mode, wide, narrow) == ([] if mode == "mean_std" else ["z"])


@pytest.mark.parametrize("mode", ["q01_q99", "min_max", "mean_std"])
def test_a_gripper_that_closes_in_few_frames_still_closes(mode):
    """Its quantiles are both `open`: scaled by them, the command to close is clipped away and no policy ever grasps."""
    values = np.zeros((1000, 2), np.float32)
    values[:, 0] = np.linspace(-1, 1, 1000)
    values[:, 1] = -1.0
    values[500:505, 1] = 1.0
    stats = compute_stats(("x", "gripper"), values)
    assert stats.q01[1] == stats.q99[1] == -1
    assert rare_dims(mode, stats) == (["gripper"] if mode == "q01_q99" else []) and not near_constant(mode, stats)
    normalize = Normalize(mode, stats, stats)
    action = np.array([[0.5, -1.0], [0.5, 1.0]], np.float32)
    out = normalize(replace(sample_of(action[0], action, action, np.ones(2, bool)), action_mask=np.ones(2, bool)))
    assert out.action is not None
    np.testing.assert_allclose(normalize.inverse(out.action, action[0]), action, atol=1e-5)
    if mode != "mean_std":
        assert out.action[:, 1].tolist() == [-1, 1] and out.state[1] == -1


def test_statistics_that_are_not_of_this_data_are_refused():
    stats = compute_stats(("a", "b"), np.ones((3, 2))), compute_stats(("a", "b"), np.ones((3, 2)))
    with pytest.raises(UserError, match=r"data\.stats_source"):
        build_chain(DataConfig(), POSE, (), stats, SPEC)


@pytest.mark.parametrize("size", ["state_dim", "action_dim"])
def test_wrong_action_size_is_refused(size):
    stats = compute_stats(POSE.state.names, np.ones((3, 7))), compute_stats(POSE.action.names, np.ones((3, 7)))
    with pytest.raises(UserError, match=rf"has 7 dims, the model takes 6.*{size}"):
        build_chain(DataConfig(), POSE, (), stats, replace(SPEC, **{size: 6}))


@pytest.mark.parametrize("embodiment", [POSE, AXIS_ANGLE])
@pytest.mark.parametrize("variant", ["recorded", "delta_to_state"])
def test_chain_survives_json(embodiment, variant):
    chain = chain_for(embodiment, variant)
    again = chain_from_dicts(json.loads(json.dumps(chain_to_dicts(chain))))
    assert again == chain
    with pytest.raises(UserError, match="upgrade"):
        chain_from_dicts([{"name": "Tomorrow"}])


def test_a_query_is_transformed_like_a_training_sample():
    chain = chain_for(POSE, "delta_to_state")
    views = {"wrist": image(1, 20, 30), "front": image(2, 16, 16), "extra": image(3, 16, 16)}
    states = np.linspace(-1, 1, 42, dtype=np.float32).reshape(6, 7)
    train = chain(sample_of(states[0], states, states, kind="vla", views=views))
    query = chain(sample_of(states[0], None, None, kind="vla", views=views))
    assert query.action is None and np.array_equal(query.state, train.state)
    assert list(query.views) == ["front", "wrist"] and query.slots == {"front": 0, "wrist": 1}
    noise = np.zeros((6, 8), np.float32)
    one = collate([train], SPEC, encode, [noise], [0.5], [0])
    two = collate([query], SPEC, encode, [noise], [0.5], [0])
    assert one.input_ids_BL.equal(two.input_ids_BL) and one.images_NCHW.equal(two.images_NCHW)
    assert one.action_mask_BTA.equal(two.action_mask_BTA) and (two.actions_BTA == 0).all()


@pytest.mark.parametrize("raw", ["Pick up the mug.", "pick  up the mug", " pick up\tthe mug . ", "PICK UP THE MUG"])
def test_one_spelling(raw):
    clean = CleanInstruction()(replace(sample_of(np.zeros(7), None, None), instruction=raw))
    assert clean.instruction == "pick up the mug"


def test_absent_view_keeps_the_slots_of_the_others():
    """FACTS 5.3: with a middle view missing, the released code showed the wrist as view 2."""
    chosen = SelectViews(("front", "side", "wrist"))(
        sample_of(np.zeros(7), None, None, kind="vla", views={"wrist": image(0, 8, 8), "front": image(0, 8, 8)})
    )
    assert list(chosen.views) == ["front", "wrist"] and chosen.slots["wrist"] == 2
    with pytest.raises(UserError, match="front, side, wrist"):
        SelectViews(("front", "side", "wrist"))(
            sample_of(np.zeros(7), None, None, kind="vla", views={"top": image(0, 8, 8)})
        )


@pytest.mark.parametrize("size", [8, 16, 40])
def test_resize_keeps_the_picture_upright(size):
    resized = ResizeImages(16)(sample_of(np.zeros(7), None, None, kind="vla", views={"a": image(3, size, 2 * size)}))
    picture = resized.views["a"]
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    assert picture[:6, :6].max() < 40 < picture[10:, 10:].min()


def test_gplas_changes_come_with_the_papers_probabilities_each_for_itself():
    draws = [draw_gpla_look(np.random.Generator(np.random.Philox(number))) for number in range(2000)]
    changed = {
        "brightness": [look.brightness != 1 for look in draws],
        "contrast": [look.contrast != 1 for look in draws],
        "saturation": [look.saturation != 1 for look in draws],
        "shift_right": [look.shift[0] != 0 for look in draws],
        "shift_down": [look.shift[1] != 0 for look in draws],
        "crop": [look.centre != (0.5, 0.5) for look in draws],
    }
    for name, happened in changed.items():
        assert np.mean(happened) == pytest.approx(CHANCE[name], abs=0.04), name
    assert np.abs(np.corrcoef(np.array(list(changed.values()), float)) - np.eye(6)).max() < 0.1
    whole = [look for look in draws if look.centre == (0.5, 0.5)]
    assert np.mean([look.crop != (1, 1) for look in whole]) == pytest.approx(CHANCE["scale"], abs=0.06)
    assert all(look.degrees == look.hue_degrees == 0 and look.crop[0] > 0 for look in draws), "no turn, no mirror"
    assert all(0.85 / 1.1 - 1e-9 < look.crop[0] < 1 / 0.9 + 1e-9 for look in draws)


def test_gplas_noise_is_on_actions_that_count_and_the_rest_stays():
    action = np.zeros((6, 7), np.float32)
    action[:, 0] = 1.0
    valid, mask = np.arange(6) < 4, np.arange(7) < 5
    raw = replace(sample_of(np.zeros(7, np.float32), action, action, valid), action_mask=mask)
    noise = []
    for number in range(400):
        made = augment_as_gpla(raw, np.random.Generator(np.random.Philox(number)), 1.0)
        assert made.action is not None and made.action.dtype == np.float32 and made.action.max() <= 1
        assert not made.action[~valid, 1:].any() and not made.action[:, ~mask].any()
        assert np.array_equal(made.state, raw.state)
        noise.append(made.action[:4, 1:5])
    noisy = [item for item in noise if item.any()]
    assert len(noisy) / len(noise) == pytest.approx(CHANCE["noise"], abs=0.06)
    assert np.std(noisy) == pytest.approx(NOISE, rel=0.1)
    assert augment_as_gpla(raw, np.random.Generator(np.random.Philox(0)), 0.0) is raw


def test_a_shift_moves_the_picture_and_its_content():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[20, 20] = 255
    plain = Look((1.0, 1.0), (0.5, 0.5), 0.0, 1.0, 1.0, 1.0, 0.0)
    moved = apply_look(replace(plain, shift=(0.1, -0.2)), picture)
    assert np.array_equal(apply_look(plain, picture), picture) and tuple(np.argwhere(moved[..., 0])[0]) == (28, 16)


def test_augmentation_is_one_look_for_all_views_and_leaves_no_black_corner():
    picture = np.full((64, 64, 3), 180, np.uint8)
    raw = sample_of(np.zeros(7), None, None, kind="vla", views={"a": picture, "b": picture})

    def draw(number: int) -> np.random.Generator:
        return generator(0, RngUse.AUGMENT, "source", number)

    assert augment(raw, draw(0), 0.0) is raw
    looks = [augment(raw, draw(number), 1.0).views for number in range(20)]
    for look in looks:
        assert np.array_equal(look["a"], look["b"])
        assert look["a"].dtype == np.uint8 and np.ptp(look["a"].reshape(-1, 3), axis=0).max() <= 1
    assert len({int(look["a"][0, 0, 0]) for look in looks}) > 5
    assert np.array_equal(augment(raw, draw(3), 1.0).views["a"], looks[3]["a"])
    assert draw_look(draw(1)) == draw_look(draw(1)) != draw_look(draw(2))


def test_a_crop_keeps_the_share_of_the_picture_that_the_recipe_says():
    """95 % and more of its area, within its borders, and so at most 1 / 0.95 wider or higher."""
    sides = np.array([draw_look(generator(0, RngUse.AUGMENT, "source", number)).crop for number in range(500)])
    areas, aspects = sides.prod(axis=1), sides[:, 0] / sides[:, 1]
    assert sides.max() <= 1 and 0.95 <= areas.min() < 0.955 and areas.max() <= 1
    assert 0.95 <= aspects.min() < 0.97 and 1.03 < aspects.max() <= 1 / 0.95


def test_a_neutral_look_changes_nothing_and_a_crop_is_exact():
    neutral = Look((1.0, 1.0), (0.5, 0.5), 0.0, 1.0, 1.0, 1.0, 0.0)
    picture = np.random.Generator(np.random.Philox(1)).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    assert np.array_equal(apply_look(neutral, picture), picture)
    quarter = apply_look(replace(neutral, crop=(0.5, 0.5), centre=(0.0, 0.0)), image(3, 40, 40))
    assert quarter[:38, :38].max() == 0, "the upper left quarter of the picture is dark"


def test_rows_longer_than_the_model_takes_are_refused():
    long = replace(chain_for(POSE, "recorded")(sample_of(np.zeros(7, np.float32), None, None)), instruction="go " * 65)
    with pytest.raises(UserError, match="65 tokens, the model takes 64"):
        collate([long], SPEC, encode, [np.zeros((6, 8), np.float32)], [0.5], [0])


@pytest.mark.parametrize(("noise", "bound"), [("uniform", 1.0), ("normal", 6.0)])
def test_flow_draws(noise, bound):
    draws = [draw_flow(generator(0, RngUse.FLOW, "a", n), 50, 24, FlowConfig(noise=noise)) for n in range(200)]
    noises, times = np.stack([draw[0] for draw in draws]), np.array([draw[1] for draw in draws])
    assert noises.dtype == np.float32 and np.abs(noises).max() <= bound
    assert abs(noises.mean()) < 0.01 and abs(noises.std() - (1 if noise == "normal" else 3**-0.5)) < 0.01
    assert times.min() > 0 and times.max() < 1 and abs(times.mean() - 0.5) < 0.05
