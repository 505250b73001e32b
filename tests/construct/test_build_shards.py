"""Why: la/ and vla/ must be the same clips under the same keys or the paradigms compare different data, and a clip's
image t must be the image of frame start + t or vision is taught a lag that no loss shows. Images here carry their
frame's number as a grey level. Also: a second run does nothing, a changed input is noticed."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from la4vla.construct.__main__ import run
from la4vla.construct.propose.keyframes import detect
from la4vla.construct.propose.kinematic import Kinematic
from la4vla.construct.readers import open_dataset
from la4vla.construct.recording.store import episode_path, read_episode, write_episode
from la4vla.construct.robots.robot import ROBOTS
from la4vla.construct.steps import CANDIDATES, READ
from la4vla.data.shards.writer import read_index
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import UserError
from tests.construct.datasets import FRONT, config_of, write_lerobot_v2
from tests.construct.recorded import FRAMES, STRIDE, TASK, episode, recorded


@pytest.fixture
def config(tmp_path):
    return recorded(tmp_path)


def construct(config):
    """All steps after the recording."""
    run(config, "shards")


def members(folder):
    """Clip key -> {suffix: bytes} of all tars of a folder."""
    clips = {}
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                file = tar.extractfile(member)
                assert file is not None
                clips.setdefault(key, {})[suffix] = file.read()
    return clips


def test_la_and_vla_are_the_same_clips(config):
    construct(config)
    la, vla = members(f"{config.out_dir}/la"), members(f"{config.out_dir}/vla")
    assert len(la) >= 4 * 3
    assert la.keys() == vla.keys()
    for key, files in la.items():
        assert set(files) == {"json", "npz"}
        assert files["npz"] == vla[key]["npz"]
        about, shown = (json.loads(clips[key]["json"]) for clips in (la, vla))
        assert about == {**shown, "views": []}
        start, end = about["span"]
        assert key == f"{about['episode']}-{start:05d}"
        with np.load(io.BytesIO(files["npz"])) as arrays:
            source = episode(int(about["episode"].rsplit("-", 1)[1]))
            np.testing.assert_array_equal(arrays["state"], source.state[start:end])
            np.testing.assert_array_equal(arrays["action"], source.action[start:end])
    assert (read_index(f"{config.out_dir}/la").frame_stride, read_index(f"{config.out_dir}/vla").frame_stride) == (1, 3)


@pytest.mark.parametrize("folder", ["vla", "task"])
def test_image_t_of_a_clip_is_the_image_of_its_frame(config, folder):
    construct(config)
    seen = 0
    for files in members(f"{config.out_dir}/{folder}").values():
        start, end = json.loads(files["json"])["span"]
        images = {int(name.split(".")[1]): data for name, data in files.items() if name.startswith("corner4.")}
        assert sorted(images) == list(range(0, end - start, STRIDE))
        for t, data in images.items():
            assert abs(simplejpeg.decode_jpeg(data).mean() - 2 * (start + t)) < 1
            seen += 1
    assert seen > 4 * 20


def test_whole_clips_carry_the_tasks_sentence(config):
    construct(config)
    clips = members(f"{config.out_dir}/task")
    assert set(clips) == {f"{TASK}-{number:06d}" for number in range(1000, 1004)}
    for files in clips.values():
        about = json.loads(files["json"])
        assert about["instruction"] == "Pick and place a puck to a goal"
        assert about["span"] == [0, FRAMES]
        with np.load(io.BytesIO(files["npz"])) as arrays:
            source = episode(int(about["episode"].rsplit("-", 1)[1]))
            np.testing.assert_array_equal(arrays["state"], source.state)
            np.testing.assert_array_equal(arrays["action"], source.action)


def test_a_second_build_does_nothing_and_a_changed_input_is_noticed(config, capsys):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in Path(config.out_dir).rglob("*.tar")}

    construct(config)
    table = capsys.readouterr().out
    assert "primitives: move" in table
    clips, whole = (read_index(f"{config.out_dir}/{name}").frames for name in ("la", "task"))
    assert f"in no clip: {whole - clips} of {4 * FRAMES} frames" in table
    first = stamps()
    assert len(first) == 6
    construct(config)
    assert "up to date" in capsys.readouterr().out
    assert stamps() == first

    config.propose.bend_tolerance = 0.5
    construct(config)
    second = stamps()
    assert all(second[path] != first[path] for path in first)
    write_episode(episode_path(Path(config.read.path), TASK, 1002), episode(1004))
    construct(config)
    assert all(stamps()[path] != second[path] for path in first)


def test_other_axes_in_the_robots_file_are_noticed(config, tmp_path, monkeypatch):
    """The words of recorded episodes come from it as those of any dataset do."""

    def sentences():
        run(config, "propose")
        lines = Path(config.out_dir, CANDIDATES).read_text().splitlines()[-4:]
        return [item["instruction"] for line in lines for item in json.loads(line)["candidates"]]

    monkeypatch.setattr("la4vla.construct.robots.robot.ROBOTS", shutil.copytree(ROBOTS, tmp_path / "robots"))
    before = sentences()
    assert any("left" in text.split() for text in before) and not any("right" in text.split() for text in before)
    file = tmp_path / "robots/metaworld_sawyer.yaml"
    file.write_text("# another note\n" + file.read_text())
    assert sentences() == before
    assert len(Path(config.out_dir, CANDIDATES).read_text().splitlines()) == 4
    file.write_text(file.read_text().replace("left: -x", "left: +x"))
    assert sentences() == [text.replace("left", "right") for text in before]


def test_the_same_episodes_give_the_same_bytes(config):
    construct(config)
    first = {path.name: path.read_bytes() for path in Path(config.out_dir, "vla").glob("*.tar")}
    Path(config.out_dir, "build.json").unlink()
    construct(config)
    assert {path.name: path.read_bytes() for path in Path(config.out_dir, "vla").glob("*.tar")} == first


def test_missing_and_damaged_episodes_are_errors_and_leave_the_old_shards(config):
    construct(config)
    config.record.episodes = 5
    with pytest.raises(UserError, match="4 of 5 episodes"):
        open_dataset(config)
    config.record.episodes = 4
    episode_path(Path(config.read.path), TASK, 1001).write_bytes(b"half")
    with pytest.raises(UserError, match="001001"):
        construct(config)
    assert read_index(f"{config.out_dir}/vla").clips == read_index(f"{config.out_dir}/la").clips > 0


def test_too_many_shards_for_the_clips_is_an_error(config):
    config.shards = 500
    with pytest.raises(UserError, match="shards"):
        construct(config)


def test_wording_depends_on_the_episode_not_on_its_neighbours(config):
    path = episode_path(Path(config.read.path), TASK, 1001)
    episode = read_episode(path)
    hints = detect(episode.state, EMBODIMENT.state, config.keyframes)
    alone = [item.instruction for item in Kinematic(config.propose, config.seed).propose(episode, hints).proposals]
    construct(config)
    together = members(f"{config.out_dir}/la")
    assert alone == [
        json.loads(files["json"])["instruction"] for key, files in sorted(together.items()) if "-001001-" in key
    ]


def test_an_image_that_does_not_decode_is_named_and_then_left_out(tmp_path):
    write_lerobot_v2(tmp_path / "set", store="jpeg")
    path = tmp_path / "set/data/chunk-000/episode_000001.parquet"
    whole = pq.read_table(path)
    cells = whole[FRONT].to_pylist()
    cells[7] = {"bytes": cells[7]["bytes"][:12], "path": None}
    pq.write_table(whole.set_column(whole.column_names.index(FRONT), FRONT, pa.array(cells)), path)
    config = config_of(tmp_path / "set", "lerobot", "droid_franka")
    with pytest.raises(UserError, match=r"episode-000001: .*damaged JPEG.*read\.decode=true.*max_bad_episodes"):
        construct(config)
    config.read.decode, config.read.max_bad_episodes = True, 1
    construct(config)
    assert {key for shard in read_index(tmp_path / "out/task").shards for key in shard.keys} == {
        "episode-000000",
        "episode-000002",
    }


def test_a_damaged_line_of_a_ledger_is_named_and_costs_one_row(config):
    construct(config)
    path = Path(config.out_dir, READ)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:30] + "\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2 is damaged"):
        construct(config)
    path.write_text("".join([lines[0], *lines[2:]]))
    construct(config)
    assert len(path.read_text().splitlines()) == len(lines)
