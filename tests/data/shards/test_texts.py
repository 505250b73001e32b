"""Why: a conversation whose images have slipped by one, or whose answer is empty, trains a model that looks trained.
What a row is must come back from its tar bit for bit, and the writer must refuse a row that no model can learn from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg

from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_texts
from la4vla.data.shards.texts import StoredImage, TextWriter
from la4vla.data.shards.writer import View
from la4vla.types import Turn, UserError
from tests.fixtures import ARM, make_text, write_shards, write_texts


def test_what_is_written_is_read(tmp_path):
    rows = [replace(make_text(number), scores={"judge": 0.5} if number == 4 else None) for number in range(9)]
    system = Turn("system", "You are a robot.")
    rows[8] = replace(rows[8], turns=(system, *rows[8].turns, Turn("user", "Sure?"), Turn("assistant", "Yes.")))
    index = write_texts(tmp_path / "texts", rows, shards=2)
    assert read_index(tmp_path / "texts", "texts") == index
    assert (index.holds, index.robot, index.clips, index.samples) == ("texts", ARM, 9, 9)
    assert index.views == {"front": View(16, 16)}
    read = {row.key: row for shard in range(2) for row in read_texts(index, shard)}
    assert read == {row.key: row for row in rows}


def test_the_bytes_depend_on_the_rows_only(tmp_path):
    hashes = [[shard.sha256 for shard in write_texts(tmp_path / name, 9, 3).shards] for name in ("a", "b")]
    assert hashes[0] == hashes[1]


def test_a_record_is_a_json_and_its_images(tmp_path):
    row = make_text(5)
    raw = json.loads(json.dumps(row.to_dict()))
    assert raw["messages"] == [{"role": "user", "text": "What is 5?", "images": [0, 1]}]
    assert raw["images"] == [["front", 0], ["front", 1]]
    assert (raw["answer"], raw["question"], raw["episode"]) == ("answer 5 again", "next", "episode-1")
    assert (raw["task"], raw["span"], raw["instruction"]) == ("test", [0, 5], "Move the gripper left.")


def test_images_of_several_sizes_and_of_no_robot(tmp_path):
    index = write_texts(tmp_path / "texts", [make_text(2, image_size=16), make_text(5, image_size=24)], 1, robot=None)
    assert read_index(tmp_path / "texts", None) == index
    assert index.robot is None and index.views == {"front": View(0, 0)}


def one(turns, images=()):
    return replace(make_text(0), key="other", turns=tuple(turns), images=tuple(images))


USER, SAID = Turn("user", "What?"), Turn("assistant", "This.")
GREY = StoredImage("front", 0, simplejpeg.encode_jpeg(np.full((8, 8, 3), 128, np.uint8)))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (replace(make_text(0), key="a.b"), "without dots"),
        (make_text(0), "occurs twice"),
        (one([USER]), "user and assistant must take turns"),
        (one([SAID]), "user and assistant must take turns"),
        (one([USER, USER, SAID, SAID]), "user and assistant must take turns"),
        (one([USER, SAID, Turn("system", "s"), SAID]), "user and assistant must take turns"),
        (one([USER, Turn("assistant", " ")]), "an answer is empty"),
        (one([Turn("user", "What?", (0,)), SAID]), "it has 0 images and shows .0."),
        (one([USER, SAID], [GREY]), "it has 1 images and shows ..;"),
        (one([Turn("user", "", (1, 0)), SAID], [GREY, GREY]), "shows .1, 0."),
        (one([USER, Turn("assistant", "This.", (0,))], [GREY]), "not the user's"),
        (one([Turn("user", "", (0,)), SAID], [replace(GREY, jpeg=b"x")]), "not a JPEG"),
        (one([Turn("user", "", (0,)), SAID], [replace(GREY, t=100000)]), "number images from 0 to 99999"),
        (one([Turn("user", "", (0,)), SAID], [replace(GREY, view="a.b")]), "no dots or slashes"),
    ],
)
def test_the_writer_refuses(tmp_path, row, sentence):
    with pytest.raises(UserError, match=sentence), TextWriter(tmp_path / "texts", 1) as writer:
        writer.add(make_text(0))
        writer.add(row)
    assert not list(tmp_path.iterdir()), "nothing half-written stays"


def test_a_folder_of_one_kind_is_not_the_other(tmp_path):
    write_texts(tmp_path / "texts", 4, 2)
    write_shards(tmp_path / "clips", 4, 2)
    with pytest.raises(UserError, match=r"texts holds texts, and clips are needed here"):
        read_index(tmp_path / "texts")
    with pytest.raises(UserError, match=r"clips holds clips, and texts are needed here"):
        read_index(tmp_path / "clips", "texts")


def test_a_damaged_shard_of_texts_is_named(tmp_path):
    index = write_texts(tmp_path / "texts", 6, 2)
    path = tmp_path / "texts" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 0xFF
    path.write_bytes(data)
    assert len(read_texts(index, 0)) == 3
    with pytest.raises(UserError, match=r"shard-000001\.tar: its sha256 is not that of the index"):
        read_texts(index, 1)
