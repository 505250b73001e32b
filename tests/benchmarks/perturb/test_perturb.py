"""Why: published robustness numbers were wrong because the variant leaked into the prompt, never reached the policy, or
grew weaker with its level. Each perturbation here proves what it delivers, on a rendered MetaWorld image."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.perturb import perturb
from benchmarks.perturb.perturb import CLEAN, PERTURBATIONS, SEVERITIES, Variant
from benchmarks.report import perturbation_sheet
from benchmarks.rollouts.rollout import RolloutJob, make_env, roll_out
from la4vla.shell import exit_status
from la4vla.sim.env import SceneChange
from la4vla.types import Observation, UserError
from tests.benchmarks.fake_env import POINT, PointEnv, protocol

NAMES = [name for name, change in PERTURBATIONS.items() if change.kind == "pixels"]
LASTING = [name for name in NAMES if PERTURBATIONS[name].lasts == "episode"]
DRAWN = ["gaussian_noise", "motion_blur", "fog", "occlusion"]
IMAGES = 100  # over which dropout, the one that is all or nothing, must show its share


@pytest.fixture(scope="module")
def image():
    """MetaWorld's plate-slide, corner4 at 112 pixels, in the middle of the expert's episode."""
    return cv2.imread(str(Path(__file__).parent / "frame.png"))[..., ::-1].copy()


@pytest.fixture
def seen(image):
    return Observation({"eye": image, "wrist": image.copy()}, np.arange(4, dtype=np.float32), "slide the plate")


def perturbed(seen, name, severity=3, task="plate-slide-v3", episode=0, step=0, suite="metaworld", seed=0):
    return perturb.perturb(seen, Variant(name, severity), seed, suite, task, episode, step)


def distance(a, b):
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NAMES)
def test_only_pixels_change(seen, name, severity):
    state, before = seen.state.tobytes(), {view: image.copy() for view, image in seen.views.items()}
    results = [perturbed(seen, name, severity, step=step) for step in range(40)]
    for result in results:
        assert result.state.tobytes() == state and result.instruction == "slide the plate"
        assert list(result.views) == ["eye", "wrist"]
        assert all(image.shape == (112, 112, 3) and image.dtype == np.uint8 for image in result.views.values())
    for view, image in before.items():
        assert np.array_equal(seen.views[view], image), "the caller's image was written on"
        assert any(not np.array_equal(result.views[view], image) for result in results), "nothing was perturbed"


@pytest.mark.parametrize("episode", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_severity_is_strictly_monotone(seen, name, episode):
    steps = range(IMAGES if name == "view_dropout" else 1)

    def change(severity):
        results = [perturbed(seen, name, severity, episode=episode, step=step) for step in steps]
        return np.mean([distance(result.views["eye"], seen.views["eye"]) for result in results])

    distances = [0.0, *map(change, SEVERITIES)]
    assert all(weak < strong for weak, strong in pairwise(distances))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_the_same_bytes_whatever_ran_before(seen, name):
    first = perturbed(seen, name, episode=4, step=16)
    perturbed(seen, name, episode=5, step=8)
    again = perturbed(seen, name, episode=4, step=16)
    assert all(np.array_equal(first.views[view], again.views[view]) for view in first.views)


@pytest.mark.parametrize("other", [{"episode": 1}, {"task": "reach-v3"}, {"suite": "libero"}, {"seed": 1}])
@pytest.mark.parametrize("name", DRAWN)
def test_other_episodes_are_perturbed_otherwise(seen, name, other):
    assert not np.array_equal(perturbed(seen, name).views["eye"], perturbed(seen, name, **other).views["eye"])


@pytest.mark.parametrize("name", DRAWN)
def test_two_cameras_have_their_own_draws(seen, name):
    result = perturbed(seen, name)
    assert not np.array_equal(result.views["eye"], result.views["wrist"])


@pytest.mark.parametrize("name", DRAWN)
def test_weather_and_lens_last_an_episode_and_sensor_noise_an_image(seen, name):
    first, later = (perturbed(seen, name, step=step).views["eye"] for step in (0, 8))
    assert np.array_equal(first, later) is (name in LASTING)


def test_noise_has_the_sigma_it_says():
    grey = Observation({"eye": np.full((112, 112, 3), 128, np.uint8)}, np.zeros(4), "")
    for severity, sigma in zip(SEVERITIES, PERTURBATIONS["gaussian_noise"].levels[:2], strict=False):  # rarely clipped
        noise = perturbed(grey, "gaussian_noise", severity).views["eye"].astype(float) - 128
        assert noise.std() == pytest.approx(sigma, rel=0.03) and abs(noise.mean()) < 0.3


def test_dropped_views_are_black_and_as_many_as_said(seen):
    dropped = [not perturbed(seen, "view_dropout", 3, step=step).views["eye"].any() for step in range(400)]
    assert np.mean(dropped) == pytest.approx(0.6, abs=0.08)
    assert not perturbed(seen, "view_dropout", 5).views["eye"].any()


def test_occlusion_covers_its_area_and_what_a_weaker_one_covers(image):
    white = Observation({"eye": np.full_like(image, 255)}, np.zeros(4), "")
    covered = [perturbed(white, "occlusion", s).views["eye"].max(axis=2) == 0 for s in SEVERITIES]
    assert [cover.mean() for cover in covered] == pytest.approx([0.04, 0.09, 0.16, 0.25, 0.36], abs=0.01)
    assert all((strong | ~weak).all() for weak, strong in pairwise(covered))


def test_blurs_move_no_light(image):
    dot = np.zeros((224, 224, 3), np.uint8)
    dot[112, 112] = 255
    image = Observation({"eye": dot}, np.zeros(4), "")
    trail = perturbed(image, "motion_blur", 5).views["eye"][..., 0].astype(float)
    columns = np.flatnonzero(trail.sum(axis=0))
    assert 20 < np.ptp(columns) <= 40 and 112 in (columns.min(), columns.max()), "a trail of up to 40 px to one side"
    assert trail.sum() == pytest.approx(255, rel=0.4)  # rounding to grey levels takes the faint end


def test_lengths_scale_with_the_image(image):
    """The same blur at half the resolution, or a protocol's image_size would change the perturbation."""
    large = cv2.resize(image, (448, 448), interpolation=cv2.INTER_LINEAR)
    for name in ("gaussian_blur", "motion_blur"):
        small, big = (perturbed(Observation({"eye": x}, np.zeros(4), ""), name, 3).views["eye"] for x in (image, large))
        assert distance(small, cv2.resize(big, (112, 112), interpolation=cv2.INTER_AREA)) < 2.0


@pytest.mark.parametrize("side", [16, 448])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_will_do(name, side):
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    for severity in SEVERITIES:
        result = perturbed(Observation({"eye": image}, np.zeros(4), ""), name, severity).views["eye"]
        assert result.shape == image.shape


def test_clean_is_the_very_observation(seen):
    assert perturb.perturb(seen, CLEAN, 0, "metaworld", "reach-v3", 0, 0) is seen


@pytest.mark.parametrize("name", NAMES)
def test_the_policy_is_asked_with_perturbed_images_and_the_same_words(name):
    """Through a rollout: what leaves the env's side is perturbed, so served and in-process policies get the same."""
    asked: dict[str, list[Observation]] = {}
    for variant in (CLEAN, Variant(name, 5)):
        asked[variant.title] = []

        def ask(observation, number, log=asked[variant.title]):
            log.append(observation)
            return np.full((8, 1), 0.01, np.float32)

        rules = protocol(horizon=24, replan_every=8, image_size=16)
        env = make_env(replace(POINT, make_env=Striped), rules, ("eye",))
        roll_out(env, RolloutJob("easy-a", 0, variant=variant), rules, ask)
    clean, changed = asked.values()
    assert len(clean) == len(changed) == 3
    for before, after in zip(clean, changed, strict=True):
        assert before.state.tobytes() == after.state.tobytes() and before.instruction == after.instruction
    assert any(not np.array_equal(b.views["eye"], a.views["eye"]) for b, a in zip(clean, changed, strict=True))


class Striped(PointEnv):
    """Its images have something to blur."""

    def observe(self):
        seen = super().observe()
        image = np.indices((16, 16)).sum(axis=0).astype(np.uint8)[..., None] * np.uint8([7, 5, 3])
        return replace(seen, views=dict.fromkeys(seen.views, image))


@pytest.mark.parametrize("kind", ["scene", "robot", "language"])
def test_the_env_is_told_of_its_changes_and_the_policy_of_none(kind):
    """The instruction is the clean one unless it is what changes, and then nothing else is."""
    for name in (name for name, change in PERTURBATIONS.items() if change.kind == kind):
        rules, asked = protocol(horizon=8, image_size=16), []
        env = make_env(replace(POINT, make_env=Told), rules, ("eye",))

        def ask(observation, number, log=asked):
            log.append(observation)
            return np.full((8, 1), 0.01, np.float32)

        roll_out(env, RolloutJob("easy-a", 0), rules, ask)
        roll_out(env, RolloutJob("easy-a", 0, variant=Variant(name, 5)), rules, ask)
        expected = SceneChange(name, PERTURBATIONS[name].levels[4], rules.seed)
        assert env.told == [None, None if kind == "language" else expected]
        clean, changed = asked[0], asked[len(asked) // 2]
        assert (clean.instruction == changed.instruction) is (kind != "language")
        assert np.array_equal(clean.views["eye"], changed.views["eye"]) and clean.state == changed.state


class Told(Striped):
    """Remembers the changes that its resets were asked for."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.told = []

    def reset(self, task, episode, change=None):
        self.told.append(change)
        return super().reset(task, episode)


@pytest.mark.parametrize(
    ("views", "reads", "lost"),
    [(False, True, "fog, camera"), (False, False, "fog, camera, language"), (True, False, "language")],
)
def test_only_what_reaches_a_policy_is_run(views, reads, lost):
    """A perturbed arm that equals its clean one would read as perfect robustness."""
    variants = perturb.parse(["fog:1,2", "camera", "robot_pose", "language"])
    perturb.check_delivered(variants, True, True)
    with pytest.raises(UserError, match=f"--perturb {lost}: would not reach"):
        perturb.check_delivered(variants, views, reads)


@pytest.mark.parametrize(
    ("wanted", "titles"),
    [
        (["fog:3"], ["fog:3"]),
        (["jpeg:5,1", "fog:2", "jpeg:1"], ["jpeg:5", "jpeg:1", "fog:2"]),
        (["contrast"], [f"contrast:{s}" for s in SEVERITIES]),
        ([], []),
    ],
)
def test_variants_are_read_as_written(wanted, titles):
    assert [variant.title for variant in perturb.parse(wanted)] == titles


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smoke:3", r"no perturbation `smoke`; use one of gaussian_noise"),
        ("fog:6", r"severities are 1 to 5; write fog:3"),
        ("fog:0", r"severities are 1 to 5"),
        ("fog:", r"severities are 1 to 5"),
        ("fog:1,", r"severities are 1 to 5"),
        ("clean", r"no perturbation `clean`"),
    ],
)
def test_bad_variants_say_the_cure(text, message):
    with pytest.raises(UserError, match=message):
        perturb.parse([text])


def test_an_identity_tells_the_level():
    assert Variant("fog", 3).identity == "fog:3=2.0" and CLEAN.identity == CLEAN.title == "clean"
    assert Variant("fog", 3).folder == "fog_3"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fog:9"], "write fog:3"),
        (
            ["jpeg:1", "fog:2", "robot_pose:1"],
            "jpeg, fog: would not reach this policy; leave it out (others do: robot_pose",
        ),
        (["language:1"], "language: would not reach this policy"),
    ],
)
def test_the_command_takes_it_as_often_as_given_and_refuses_in_one_sentence(texts, message, tmp_path, capsys):
    asked = [part for text in texts for part in ("--perturb", text)]
    options = ["metaworld", "--expert", "--protocol", "metaworld/quickstart-v1", "--out", str(tmp_path), *asked]
    assert exit_status(command.main, options) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_sheet_has_a_row_for_every_perturbation(tmp_path, monkeypatch, capsys):
    """It is what users look at: a kind that is missing there, or shown unchanged, would go unnoticed."""
    monkeypatch.setattr(perturbation_sheet, "SIDE", 16)
    monkeypatch.setattr(perturbation_sheet, "SIMULATORS", {"point": replace(POINT, make_env=Told)})
    assert exit_status(command.main, ["perturbations", "--out", str(tmp_path / "new" / "sheet.png")]) == 0
    written = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    rows = written[:, perturbation_sheet.MARGIN :].reshape(1 + len(PERTURBATIONS), 16, 3, 16, 3)
    for row, name in enumerate(PERTURBATIONS, start=1):
        changed = PERTURBATIONS[name].kind in ("pixels", "language")  # the others are the simulator's to show
        assert bool((rows[row] != rows[0]).any()) is changed, name
    assert exit_status(command.main, ["perturbations", "--out", str(tmp_path / "sheet.odt")]) == 2
    assert "end it in .jpg or .png" in capsys.readouterr().err
    (tmp_path / "taken.png").mkdir()
    assert exit_status(command.main, ["perturbations", "--out", str(tmp_path / "taken.png")]) == 2
    assert "cannot be written there; give another --out" in capsys.readouterr().err
    assert exit_status(command.main, ["perturbations", "--out", str(tmp_path / "new" / "sheet.png" / "x.png")]) == 2
    assert "its folder cannot be made" in capsys.readouterr().err
