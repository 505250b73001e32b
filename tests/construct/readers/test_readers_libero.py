"""Why: LIBERO's files store images bottom-up and observations one action late, and say nothing of either; a reader
that believes the file teaches upside-down images and commands that are already carried out."""

import h5py
import numpy as np
import pytest
import simplejpeg

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.readers import open_dataset
from la4vla.construct.readers.libero import language
from la4vla.data.shards.writer import read_index
from la4vla.sim.libero import task_table
from la4vla.types import UserError
from tests.construct.datasets import HEIGHT, LENGTHS, WIDTH, config_of, grey, poses, write_libero


def libero(root, **read):
    return config_of(root, "libero", "libero_panda", **read)


@pytest.fixture(params=["late", "aligned"])
def late(request):
    return request.param == "late"


def test_states_images_and_actions_of_a_frame_belong_together(tmp_path, late):
    root = write_libero(tmp_path / "libero_10", late)
    dataset = open_dataset(libero(root))
    assert [key[-7:] for key in dataset.keys] == ["-000000", "-000001"]
    assert all(key.startswith("KITCHEN_SCENE10_close_the_top_drawer_of_the-") for key in dataset.keys)
    for demo, key in enumerate(dataset.keys):
        episode = dataset.read(key)
        first, frames = (1, LENGTHS[demo] - 1) if late else (0, LENGTHS[demo])
        assert (len(key) <= 60, len(episode), episode.fps) == (True, frames, 20.0)
        before = poses(LENGTHS[demo] + 1, demo)[first : first + frames]
        np.testing.assert_allclose(episode.state[:, :3], before[:, :3], atol=1e-6)
        np.testing.assert_allclose(episode.state[:, 6], 0.5, atol=1e-6)
        np.testing.assert_allclose(episode.action[:, 0], (first + np.arange(frames)) / 100, atol=1e-6)
        assert set(episode.action[:, 6]) == {-1.0, 1.0} and episode.action[0, 6] == -1.0
        assert episode.views == ("agentview", "robot0_eye_in_hand")
        for view in episode.views:
            for frame, jpeg in episode.frames(view, [0, 5]).items():
                corner = simplejpeg.decode_jpeg(jpeg)[: HEIGHT // 2 - 4, WIDTH // 2 + 4 :].mean()
                due = grey(demo, first + frame, view == "robot0_eye_in_hand")
                assert corner == pytest.approx(due, abs=1.4)


def test_images_are_upright_and_not_mirrored(tmp_path):
    dataset = open_dataset(libero(write_libero(tmp_path / "suite", False)))
    episode = dataset.read(dataset.keys[1])
    shown = simplejpeg.decode_jpeg(episode.frames("robot0_eye_in_hand", [30])[30]).astype(int)
    upper, lower = shown[: HEIGHT // 2 - 4], shown[HEIGHT // 2 + 4 :]
    left, right = upper[:, : WIDTH // 2 - 4], upper[:, WIDTH // 2 + 4 :]
    assert upper.mean() > 1.8 * lower.mean() and right.mean() > 1.8 * left.mean()


@pytest.mark.parametrize(
    ("stem", "sentence"),
    [
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_demo", "close the top drawer of the cabinet"),
        ("pick_up_the_black_bowl_demo", "pick up the black bowl"),
        ("my_own", "shut it"),
    ],
)
def test_the_sentence_is_the_one_that_evaluations_say(tmp_path, stem, sentence):
    dataset = open_dataset(libero(write_libero(tmp_path / "suite", False, stem)))
    assert dataset.read(dataset.keys[0]).instruction == sentence


def test_the_names_of_liberos_own_files_spell_what_evaluations_say():
    assert len(task_table()) == 130
    for row in task_table():
        assert language(f"{row['name']}_demo") == row["prompt"]


@pytest.mark.parametrize(
    "suffix",
    [
        "_view_0_0_100_0_0_initstate_0",
        "_view_-10_5_100_0_0_initstate_3_noise_45",
        "_table_2",
        "_light_7",
        "_add_16",
        "_language_4",
        "_level2_1",
    ],
)
def test_what_a_derived_suite_changed_is_no_part_of_the_instruction(tmp_path, suffix):
    stem = f"KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it{suffix}_demo"
    root = write_libero(tmp_path / "suite", False, stem)
    config = libero(root, max_bad_episodes=2)
    rows = list(steps.read(config, open_dataset(config)))
    if suffix == "_level2_1":  # not the form that is known: a fault, with a cure that works
        assert all("spells no instruction" in row["faults"][0] for row in rows)
        (root / f"{stem}.hdf5").rename(root / f"{stem.removesuffix('_demo')}.hdf5")
        rows = list(steps.read(config, open_dataset(config)))
        assert [row["instruction"] for row in rows if not row["faults"]] == ["shut it", "shut it"]
    else:
        assert [row["instruction"] for row in rows] == ["turn on the stove and put the moka pot on it"] * 2


def test_suites_in_folders_are_read_together_and_become_clips(tmp_path):
    write_libero(tmp_path / "all" / "libero_goal", True, "open_the_drawer_demo")
    write_libero(tmp_path / "all" / "libero_90", False, "open_the_drawer_demo")
    assert set(
        open_dataset(libero(tmp_path / "all", views={"hand": "eye_in_hand_rgb"}))
        .read("libero_90-open_the_drawer_demo-000000")
        .views
    ) == {"hand"}
    config = libero(tmp_path / "all", decode=True)
    run(config, "shards")
    index = read_index(tmp_path / "out/task")
    assert index.clips == 4 and set(index.views) == {"agentview", "robot0_eye_in_hand"}
    notes = [note for row in steps.read(config, open_dataset(config)) for note in row["notes"]]
    assert not [note for note in notes if note["kind"] == "same_view"]


def drop(name):
    def change(file):
        del file[f"data/demo_1/{name}"]

    return change


def shorten(name):
    def change(file):
        values = file[f"data/demo_1/{name}"][:-3]
        del file[f"data/demo_1/{name}"]
        file[f"data/demo_1/{name}"] = values

    return change


def displace(file):
    file["data/demo_1/states"][...] += 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (displace, "nowhere near the simulator's states"),
        (drop("actions"), "demo_1 has no actions"),
        (drop("obs/ee_states"), "demo_1 has no obs/ee_pos"),
        (drop("states"), "from before or after"),
        (drop("obs/agentview_rgb"), "cannot be read"),
        (shorten("actions"), "has 45 states but 42 of action"),
        (shorten("obs/agentview_rgb"), "has 45 states but 42 of agentview"),
        (shorten("states"), "42 states and 45 joint_states"),
    ],
)
def test_a_broken_demonstration_is_left_out(tmp_path, change, said):
    root = write_libero(tmp_path / "suite", False)
    with h5py.File(next(root.glob("*.hdf5")), "r+") as file:
        change(file)
    config = libero(root, max_bad_episodes=1)
    ledger = list(steps.read(config, open_dataset(config)))
    assert [bool(row["faults"]) for row in ledger] == [False, True]
    assert said in ledger[1]["faults"][0]


def test_robomimics_layout_is_named_and_read_as_the_message_says(tmp_path):
    root = write_libero(tmp_path / "suite", False)
    (path,) = root.glob("*.hdf5")
    with h5py.File(path, "r+") as file:
        observed = file["data/demo_0/obs"]
        observed["robot0_eef_pos"] = observed["ee_states"][:, :3]
        del observed["ee_states"]
    config = libero(root, max_bad_episodes=1)
    first, second = steps.read(config, open_dataset(config))
    assert "has robomimic's obs/robot0_..., not LIBERO's obs/ee_pos" in first["faults"][0]
    assert "read.format=npz" in first["faults"][0] and second["faults"] == []
    (tmp_path / "plain").mkdir()
    with h5py.File(path) as file:
        group = file["data/demo_0"]
        state = np.concatenate([group["obs/robot0_eef_pos"][()], np.zeros((LENGTHS[0], 4))], axis=1)
        np.savez(tmp_path / "plain/0.npz", state=state, action=group["actions"][()], instruction="close the drawer")
    plain = config_of(tmp_path / "plain", "npz", "droid_franka")
    (row,) = steps.read(plain, open_dataset(plain))
    assert row["faults"] == [] and row["frames"] == LENGTHS[0]


def test_what_is_no_libero_file_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"it has no \*.hdf5 file"):
        open_dataset(libero(tmp_path / "empty"))
    (tmp_path / "empty/a.hdf5").write_bytes(b"no")
    with pytest.raises(UserError, match="is no readable HDF5 file"):
        open_dataset(libero(tmp_path / "empty"))
    h5py.File(tmp_path / "empty/a.hdf5", "w").close()
    with pytest.raises(UserError, match="no data/demo_0"):
        open_dataset(libero(tmp_path / "empty"))
