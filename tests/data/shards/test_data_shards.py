"""Why: a malformed shard is found weeks after it was written, by a hang or by half a sample (webdataset#237, #428,
ray#65044). The writer must refuse what a reader cannot trust, the reader what the writer did not write."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from la4vla.data.inspect.describe import describe, estimated_tokens
from la4vla.data.inspect.verify import verify
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import ShardWriter, View, read_index, read_stats
from la4vla.types import UserError
from tests.fixtures import ARM, POSE, make_clip, write_shards

FRONT = {"front": View(16, 16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", clips=9, shards=3, views=["front", "wrist"], frame_stride=2)
    return tmp_path / "shards"


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_what_is_written_is_read(tmp_path):
    clips = [make_clip(number, 3 + number, views=FRONT, frame_stride=2) for number in range(6)]
    written = write_shards(tmp_path / "a", clips, shards=2, views=FRONT, frame_stride=2)
    index = read_index(tmp_path / "a")
    assert index == written
    assert (index.clips, index.frames, index.samples) == (6, 33, 2 + 2 + 3 + 3 + 4 + 4)
    read = {clip.key: clip for shard in range(2) for clip in read_shard(index, shard, ["front"])}
    for clip in clips:
        again = read[clip.key]
        assert np.array_equal(again.state, clip.state) and np.array_equal(again.action, clip.action)
        assert again.frames["front"] == clip.frames["front"]
        assert replace(again, state=clip.state, action=clip.action, frames={}) == replace(clip, frames={})


def test_bytes_depend_on_clips_only(tmp_path):
    hashes = [
        [shard.sha256 for shard in write_shards(tmp_path / name, 9, 3, views=["front"]).shards] for name in ("a", "b")
    ]
    assert hashes[0] == hashes[1]


def test_shards_are_balanced_by_samples(tmp_path):
    clips = [make_clip(number, 40 if number % 4 == 0 else 4) for number in range(64)]
    samples = [shard.samples for shard in write_shards(tmp_path / "a", clips, 4).shards]
    assert max(samples) - min(samples) <= 40


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"key": "a.b"}, "without dots"),
        ({"key": ""}, "without dots"),
        ({"key": "k" * 90}, "1 to 84"),
        ({"key": "clip-00000"}, "occurs twice"),
        ({"action": np.zeros((5, 3), np.float32)}, "which wants"),
        ({"state": np.zeros((4, 4), np.float32)}, "which wants"),
        ({"action": np.zeros((5, 4))}, "float32"),
        ({"action": np.full((5, 4), np.nan, np.float32)}, "not finite"),
        ({"frames": {}}, "give all of them"),
        ({"frames": {"front": {0: b""}}}, "render exactly those"),
        ({"frames": {"front": {0: b"x", 2: b"x", 4: b"x"}}}, "not a JPEG"),
        ({"frames": make_clip(1, 5, views={"front": View(8, 8)}, frame_stride=2).frames}, "resize it"),
    ],
)
def test_writer_refuses(tmp_path, change, sentence):
    good = make_clip(0, 5, views=FRONT, frame_stride=2)
    with pytest.raises(UserError, match=sentence), ShardWriter(tmp_path / "a", ARM, FRONT, 2, shards=1) as writer:
        writer.add(good)
        writer.add(replace(good, **{"key": "other", **change}))
    assert not list(tmp_path.iterdir()), "nothing half-written stays"


def test_writer_needs_a_clip_a_shard(tmp_path):
    with pytest.raises(UserError, match="shards=3 or fewer"):
        write_shards(tmp_path / "a", clips=3, shards=4)


def test_writer_keeps_the_old_folder_until_the_new_one_is_whole(folder):
    before = read_index(folder)
    with pytest.raises(UserError, match="exists already"):
        ShardWriter(folder, ARM, {}, 1, 1)
    with pytest.raises(RuntimeError), ShardWriter(folder, ARM, {}, 1, 1, overwrite=True):
        raise RuntimeError
    assert read_index(folder) == before
    with ShardWriter(folder, ARM, {}, 1, 1, overwrite=True) as writer:
        writer.add(make_clip(0, 5))
    assert read_index(folder).clips == 1


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), ShardWriter(tmp_path / "a", ARM, {}, 1, 1) as writer:
        writer._tars[0].fileobj = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - the writer closes it
        writer.add(make_clip(0, 5))
    assert not list(tmp_path.iterdir())


def test_newer_schema_is_refused(folder):
    raw = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**raw, "schema": 99}))
    with pytest.raises(UserError, match="upgrade"):
        read_index(folder)


def test_a_folder_that_calls_its_pictures_upside_down_is_refused(tmp_path):
    folder = tmp_path / "vla"
    write_shards(folder, 4, 2, views=["front"])
    raw = json.loads((folder / "index.json").read_text())
    for upright in (True, False):
        raw["views"]["front"]["upright"] = upright
        (folder / "index.json").write_text(json.dumps(raw))
        if upright:
            assert read_index(folder).views["front"].height == 16
        else:
            with pytest.raises(UserError, match="front are upside down"):
                read_index(folder)


@pytest.mark.parametrize("text", [b"not json", b"{}", b"[]", b'{"schema": "one"}', b"\xff\xff"])
@pytest.mark.parametrize("name", ["index.json", "stats.json"])
def test_a_broken_json_file_is_refused(folder, name, text):
    (folder / name).write_bytes(text)
    with pytest.raises(UserError, match=f"{name} .*; write the folder again") as caught:
        (read_index if name == "index.json" else read_stats)(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw["state"].pop("q01"), "lacks 'q01'"),
        (lambda raw: raw["state"]["mean"].pop(), "mean is not one finite number for each of x y z gripper"),
        (lambda raw: raw["actions"]["recorded"]["std"].__setitem__(0, None), "is damaged"),
        (lambda raw: raw["actions"]["recorded"]["std"].__setitem__(0, float("nan")), "std is not one finite"),
        (lambda raw: raw.update(actions=[]), "is damaged"),
    ],
    ids=["missing", "short", "null", "nan", "list"],
)
def test_damaged_statistics_are_named_by_reader_and_verify(folder, damage, words):
    raw = json.loads((folder / "stats.json").read_text())
    damage(raw)
    (folder / "stats.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=words):
        read_stats(folder)
    report = verify(folder)
    assert not report.ok and words in report.text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw["shards"][0].update(clips=3),
        lambda raw: raw["shards"][0]["clips"][0].update(length="many"),
        lambda raw: raw["views"]["front"].update(depth=3),
        lambda raw: raw["embodiment"].update(state=None),
    ],
    ids=["clips", "length", "view", "embodiment"],
)
def test_an_index_of_wrong_types_is_refused(folder, damage):
    raw = json.loads((folder / "index.json").read_text())
    damage(raw)
    (folder / "index.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"index\.json is damaged .*; write the folder again"):
        verify(folder)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="check the path"):
        read_index(tmp_path / "nowhere")


def damage_missing(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()


def damage_truncated(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1024])


def damage_byte(folder: Path) -> None:
    flip_byte(folder / "shard-000001.tar", 700)


def damage_order(folder: Path) -> None:
    raw = json.loads((folder / "index.json").read_text())
    raw["shards"][1]["clips"].reverse()
    (folder / "index.json").write_text(json.dumps(raw))


def damage_length(folder: Path) -> None:
    raw = json.loads((folder / "index.json").read_text())
    raw["shards"][1]["clips"][0]["length"] += 1
    (folder / "index.json").write_text(json.dumps(raw))


DAMAGES = [damage_missing, damage_truncated, damage_byte, damage_order, damage_length]


@pytest.mark.parametrize("damage", DAMAGES)
def test_reader_and_verify_name_the_damaged_shard(folder, damage):
    assert verify(folder).ok
    damage(folder)
    with pytest.raises(UserError, match=r"shard-000001\.tar: .*la4vla data verify"):
        read_shard(read_index(folder), 1, ["front"])
    report = verify(folder)
    assert not report.ok
    assert [bool(shard.problems) for shard in report.shards] == [False, True, False]
    assert "1 of 3 shards" in report.text()


def test_verify_finds_a_lost_image(folder):
    index = read_index(folder)
    path = folder / index.shards[0].name
    lost = folder / "new.tar"
    with tarfile.open(path) as old, tarfile.open(lost, "w", format=tarfile.USTAR_FORMAT) as new:
        for member in old.getmembers():
            if not member.name.endswith(".wrist.00002.jpg"):
                new.addfile(member, old.extractfile(member))
    lost.rename(path)
    raw = json.loads((folder / "index.json").read_text())
    data = path.read_bytes()
    raw["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(raw))
    assert "view wrist has" in verify(folder).text()


def test_la_never_reads_the_images(folder):
    index = read_index(folder)

    def numbers():
        found = [read_shard(index, shard, ()) for shard in range(3)]
        return [[(c.key, c.instruction, c.state.tobytes(), c.action.tobytes()) for c in clips] for clips in found]

    before = numbers()
    for shard in index.shards:
        with tarfile.open(folder / shard.name) as tar:
            places = [(member.offset_data, member.size) for member in tar if member.name.endswith(".jpg")]
        data = bytearray((folder / shard.name).read_bytes())
        for offset, size in places:
            data[offset : offset + size] = bytes(size)
        (folder / shard.name).write_bytes(data)
    assert numbers() == before
    with pytest.raises(UserError, match="sha256"):
        read_shard(index, 0, ["front"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args): ...


@pytest.fixture
def url(folder: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="WebDataset opens URLs with curl")
@pytest.mark.parametrize("views", [(), ("wrist",)])
def test_http_source_reads_like_a_local_one(folder, url, views):
    index = read_index(url)
    assert replace(index, location=str(folder)) == read_index(folder)
    assert read_stats(url) == read_stats(folder)
    for shard in range(3):
        far, near = read_shard(index, shard, views), read_shard(read_index(folder), shard, views)
        assert [(clip.key, clip.frames) for clip in far] == [(clip.key, clip.frames) for clip in near]
    damage_missing(folder)
    with pytest.raises(UserError, match=r"shard-000001\.tar"):
        read_shard(index, 1, views)


@pytest.mark.parametrize("views", [(), ("wrist",)])
def test_pipe_source(folder, views):
    index = read_index(f"pipe:cat {folder}/{{}}")
    assert [clip.key for clip in read_shard(index, 2, views)] == list(index.shards[2].keys)
    damage_truncated(folder)
    with pytest.raises(UserError, match=r"shard-000001\.tar"):
        read_shard(index, 1, ["front"])
    with pytest.raises(UserError, match="pipe:cat"):
        read_index(f"pipe:cat {folder}")


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
from la4vla.data.shards.writer import ShardWriter
from la4vla.types import UserError
from tests.fixtures import ARM
try:
    with ShardWriter(sys.argv[1], ARM, {}, 1, 100):
        raise KeyboardInterrupt
except UserError as error:
    print(error)
except KeyboardInterrupt:
    print("all open")
"""


@pytest.mark.parametrize(("most", "said"), [(4096, "all open"), (100, "allows 100; lower `shards`")])
def test_more_shards_than_files_may_be_open(tmp_path, most, said):
    """A process may usually open 1,024 files unless it asks for more, and construction writes three folders at once."""
    command = [sys.executable, "-c", MANY, str(tmp_path / "out"), str(most)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert said in done.stdout, done.stderr


def test_stats_count_every_frame_once(tmp_path):
    clips = [make_clip(number, 4 + number, embodiment=POSE) for number in range(5)]
    write_shards(tmp_path / "a", clips, 2, embodiment=POSE)
    stats = read_stats(tmp_path / "a")
    action = np.concatenate([clip.action for clip in clips])
    delta = action - np.concatenate([clip.state for clip in clips])
    assert stats.state.count == len(action) == sum(len(clip) for clip in clips)
    np.testing.assert_allclose(stats.action("recorded").mean, action.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.action("delta_to_state").q99[:6], np.quantile(delta, 0.99, 0)[:6], rtol=1e-4)
    np.testing.assert_allclose(stats.action("delta_to_state").max[6], action[:, 6].max(), rtol=1e-6)


def test_delta_stats_do_not_exist_for_delta_actions(folder):
    with pytest.raises(UserError, match="recorded"):
        read_stats(folder).action("delta_to_state")


def test_describe_counts(folder):
    text = describe(folder, image_tokens=64, text_tokens=estimated_tokens)
    index = read_index(folder)
    assert f"3 episodes  9 clips  {index.frames} frames  {index.samples} samples" in text
    assert "5 distinct instructions" in text
    assert "image : text = 25.6 : 1" in text  # 2 views of 64 tokens; 5 tokens a sentence
    assert "lift" in text and "move" in text
