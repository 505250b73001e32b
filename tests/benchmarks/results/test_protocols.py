"""Why: a protocol is what makes two success rates comparable; a silently changed number makes them lie."""

import importlib
import importlib.util
from dataclasses import replace

import pytest

from benchmarks.__main__ import parsed
from benchmarks.results import protocols
from la4vla.sim.render import use_backend
from la4vla.types import UserError

PUBLISHED = {
    "libero/evo1-v1": "6a7abd9950b356ab",
    "libero/evo1-v2": "db71ad5ee0be3a53",
    "libero/heldout-v1": "b88d932a9c0707bd",
    "libero/lerobot-v1": "6097527d4cb2b9f7",
    "libero/openpi-v1": "5f1ac545e39949fc",
    "libero/openvla-v1": "10fde0a362f9a85d",
    "libero/openvla_90-v1": "c3a68e068f7e9509",
    "libero/smoke-v1": "a12fd71962895b87",
    "metaworld/evo1-v1": "d05f1046a630316b",
    "metaworld/evo1-v2": "b22dfce0f521e3d4",
    "metaworld/mt50-v1": "fbdc34f05453c675",
    "metaworld/quickstart-v1": "150e56a900a745e9",
    "metaworld/study-v1": "e46bbe3e31efae20",
    "metaworld/vlm2vla-v1": "f6329cd89da9230b",
}
"""Title -> hash. Lines are added and never changed: rows of a protocol are in the hands of others."""


def test_a_published_protocol_is_never_edited():
    """A number of one is changed in a file of the next version; a key new to Protocol leaves no old rows comparable."""
    assert {title: protocols.load(title).hash for title in protocols.titles()} == PUBLISHED


@pytest.mark.parametrize("title", protocols.titles())
def test_every_shipped_protocol_loads_under_its_own_title(title):
    assert protocols.load(title).title == title


def test_mt50_is_the_papers_protocol():
    protocol = protocols.load("metaworld/mt50-v1")
    assert [len(tasks) for tasks in protocol.groups.values()] == [28, 11, 6, 5]
    assert (protocol.episodes, protocol.horizon, protocol.success) == (10, 400, "any_step")
    assert len(protocols.select(protocol, [], None)) == 500
    assert protocol.group_of("shelf-place-v3") == "very_hard"


@pytest.mark.sim
def test_mt50_tasks_are_metaworlds():
    if importlib.util.find_spec("metaworld") is None:
        pytest.skip('needs pip install "la4vla[metaworld]"')
    use_backend()  # before mujoco comes along with it
    metaworld = importlib.import_module("metaworld")
    assert set(protocols.load("metaworld/mt50-v1").tasks) == set(metaworld.ALL_V3_ENVIRONMENTS)


def test_override_makes_it_custom_and_changes_the_hash():
    whole, changed = protocols.load("metaworld/mt50-v1"), protocols.load("metaworld/mt50-v1", ["horizon=500"])
    assert changed.title == "custom" and changed.horizon == 500
    assert len({whole.hash, changed.hash, replace(whole, seed=1).hash}) == 3
    assert protocols.load("metaworld/mt50-v1").hash == whole.hash


def test_a_mapping_on_the_command_line_replaces_and_an_entry_of_it_changes_one():
    def horizons(*overrides):
        rules = protocols.load("libero/openvla-v1", overrides)
        return [rules.horizon_of(f"{group}_00") for group in ("libero_spatial", "libero_object", "libero_10")]

    assert horizons("horizon=30", "horizons={}") == horizons("horizons={}", "horizon=30") == [30, 30, 30]
    assert horizons("horizons={libero_object: 40}", "horizons.libero_10=50") == [520, 40, 50]
    assert horizons("horizons.libero_object=40") == [220, 40, 520]
    mine = protocols.load("metaworld/mt50-v1", ["groups={mine: [reach-v3], easy: [push-v3]}"])
    assert mine.groups == {"mine": ["reach-v3"], "easy": ["push-v3"]}


def test_a_part_of_a_protocol_stays_the_protocol():
    protocol = protocols.load("metaworld/mt50-v1")
    part = protocols.select(protocol, ["reach-v3", "push-v3"], 2)
    assert part == [("reach-v3", 0), ("reach-v3", 1), ("push-v3", 0), ("push-v3", 1)]
    assert protocol.title == "metaworld/mt50-v1"


@pytest.mark.parametrize(
    ("title", "overrides", "message"),
    [
        ("metaworld/mt51-v1", [], "use one of .*metaworld/mt50-v1"),
        ("metaworld/mt50-v1", ["horizn=3"], "unknown key `horizn`; the nearest key is `horizon`"),
        ("metaworld/mt50-v1", ["replan_every=0"], "`replan_every` is 0"),
        ("metaworld/mt50-v1", ["success=last_step"], "success rule `last_step`"),
        ("metaworld/mt50-v1", ["horizon=long"], "horizon"),
        ("libero/openvla-v1", ["horizon=30"], "`horizon` changes nothing.*add 'horizons={}'"),
        ("libero/openvla-v1", ["groups={mine: [libero_10_00]}"], "groups that `groups` has; 'horizons={}' empties it"),
        ("libero/openvla-v1", ["horizons={libero_10: long}"], "libero_10"),
    ],
)
def test_bad_protocols_say_the_cure(title, overrides, message):
    with pytest.raises(UserError, match=message):
        protocols.load(title, overrides)


@pytest.mark.parametrize(
    ("tasks", "episodes", "message"),
    [(["reach"], None, "task `reach` is not in"), ([], 11, "has 10 a task"), ([], 0, "has 10 a task")],
)
def test_bad_parts_say_the_cure(tasks, episodes, message):
    with pytest.raises(UserError, match=message):
        protocols.select(protocols.load("metaworld/mt50-v1"), tasks, episodes)


def test_a_file_of_ones_own_is_custom(tmp_path):
    source = protocols.FOLDER / "metaworld" / "mt50-v1.yaml"
    (tmp_path / "mine.yaml").write_text(source.read_text())
    assert protocols.load(str(tmp_path / "mine.yaml")).title == "custom"
    (tmp_path / "mine.yaml").write_text(source.read_text().replace("horizon: 400", ""))
    with pytest.raises(UserError, match="`horizon` has no value"):
        protocols.load(str(tmp_path / "mine.yaml"))


def test_a_base_is_a_shipped_title_or_a_path(tmp_path):
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text("base: metaworld/quickstart-v1\nreplan_every: 4\n")
    other.write_text("base: mine.yaml\nepisodes: 2\n")
    loaded = protocols.load(str(other))
    shipped = protocols.load("metaworld/quickstart-v1", ["replan_every=4", "episodes=2"])
    assert loaded == shipped and loaded.title == "custom"
    mine.write_text("base: metaworld/quickstart-v9\n")
    with pytest.raises(UserError, match=r"`base: metaworld/quickstart-v9` is none that ships; use one of libero/"):
        protocols.load(str(mine))


@pytest.mark.parametrize(
    "words",
    [
        ["metaworld", "--expert", "--protocol", "x", "--out", "y", "--tasks", "a", "b", "replan_every=4"],
        ["metaworld", "replan_every=4", "--expert", "--protocol", "x", "--out", "y", "--tasks", "a", "b"],
        ["metaworld", "--expert", "--tasks", "a", "b", "--protocol", "x", "replan_every=4", "--out", "y"],
    ],
)
def test_changes_may_stand_anywhere_on_the_command_line(words):
    options = parsed(words)
    assert (options.tasks, options.overrides) == (["a", "b"], ["replan_every=4"])


def test_the_last_of_two_changes_wins_wherever_they_stand():
    words = [
        "metaworld",
        "--expert",
        "--protocol",
        "x",
        "--out",
        "y",
        "--tasks",
        "a",
        "replan_every=4",
        "--workers",
        "1",
    ]
    assert parsed([*words, "replan_every=8"]).overrides == ["replan_every=4", "replan_every=8"]


def test_what_is_no_change_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed(["report", "runs", "--nowhere"])
    assert "unrecognized arguments: --nowhere" in capsys.readouterr().err
    assert parsed(["study", "plan.yaml", "--part", "blind", "device=cuda"]).overrides == ["device=cuda"]
