"""Why: a VQA set beside robot rows is what keeps a model's sight. An image that is shown with the wrong question, a
turned one, or a row that is silently left out is found by nobody; so every row comes whole, or the command says which
one does not."""

import json

import cv2
import numpy as np
import pytest
import simplejpeg

from la4vla import cli
from la4vla.data.imported import import_conversations
from la4vla.data.inspect.verify import verify
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_texts
from la4vla.data.shards.texts import read_about
from la4vla.types import Turn, UserError
from tests.fixtures import image


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        picture = image(number, 24, 32)
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(picture, quality=95))
        cv2.imwrite(str(folder / "deep" / f"{number}.png"), picture[..., ::-1])
    return folder


def said(*pairs):
    return [{"from": who, "value": text} for who, text in pairs]


GOOD = [
    {"id": "a", "image": "0.jpg", "conversations": said(("human", "<image>\nWhat is it?"), ("gpt", "A square."))},
    {"conversations": said(("human", "Hello"), ("gpt", "Hi."), ("human", "And?"), ("gpt", "Bye."))},
    {
        "images": ["1.jpg", "deep/2.png"],
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Compare <image> with <image>."},
            {"role": "assistant", "content": "Alike."},
        ],
    },
    {
        "images": ["deep/0.png", "1.jpg"],
        "system": "Look.",
        "conversations": said(
            ("human", "Which colour?\n<image>"), ("gpt", "Grey."), ("human", "<image>\nAnd\n\nthis?"), ("gpt", "Blue.")
        ),
    },
]


def write(tmp_path, rows):
    path = tmp_path / "vqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder):
    index = read_index(folder, "texts")
    rows = [row for shard in range(len(index.shards)) for row in read_texts(index, shard)]
    return sorted(rows, key=lambda row: row.key)


def test_rows_of_both_forms_are_taken_whole(tmp_path, images):
    index = import_conversations(write(tmp_path, GOOD), images, tmp_path / "out", 2, "")
    assert (index.holds, index.robot, index.clips) == ("texts", None, 4)
    rows = read(tmp_path / "out")
    assert [row.turns for row in rows] == [
        (Turn("user", "What is it?", (0,)), Turn("assistant", "A square.")),
        (Turn("user", "Hello"), Turn("assistant", "Hi."), Turn("user", "And?"), Turn("assistant", "Bye.")),
        (Turn("system", "Be short."), Turn("user", "Compare  with .", (0, 1)), Turn("assistant", "Alike.")),
        (
            Turn("system", "Look."),
            Turn("user", "Which colour?", (0,)),
            Turn("assistant", "Grey."),
            Turn("user", "And\n\nthis?", (1,)),
            Turn("assistant", "Blue."),
        ),
    ]
    assert {row.question for row in rows} == {"vqa"}
    assert bytes(rows[0].images[0].jpeg) == (images / "0.jpg").read_bytes(), "a JPEG stays as it is"
    for row, numbers in ((rows[2], (1, 2)), (rows[3], (0, 1))):
        for stored, number in zip(row.images, numbers, strict=True):
            shown = simplejpeg.decode_jpeg(bytes(stored.jpeg)).astype(int)
            assert np.abs(shown - image(number, 24, 32)).mean() < 3
    assert verify(tmp_path / "out").ok
    assert read_about(tmp_path / "out")["imported"] == "vqa.jsonl"


def test_one_list_is_the_same_as_lines(tmp_path, images):
    import_conversations(write(tmp_path, GOOD), images, tmp_path / "lines", 2, "x")
    listed = tmp_path / "vqa.json"
    listed.write_text(json.dumps(GOOD))
    import_conversations(listed, images, tmp_path / "list", 2, "x")
    assert read(tmp_path / "lines") == read(tmp_path / "list")


def test_an_image_that_exif_turns_is_stored_upright(tmp_path, images):
    """A camera held upright stores its image lying, and says so."""
    lying = np.ascontiguousarray(np.rot90(image(1, 24, 32)))  # to be turned by a quarter, clockwise
    jpeg = simplejpeg.encode_jpeg(lying, quality=95)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    (images / "turned.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    row = {**GOOD[0], "image": "turned.jpg"}
    import_conversations(write(tmp_path, [row]), images, tmp_path / "out", 1, "")
    shown = simplejpeg.decode_jpeg(bytes(read(tmp_path / "out")[0].images[0].jpeg)).astype(int)
    assert shown.shape == (24, 32, 3) and np.abs(shown - image(1, 24, 32)).mean() < 3


def changed(**fields):
    return {**GOOD[0], **fields}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (changed(image="9.jpg"), r"line 3: image .*9\.jpg cannot be read .*check --images"),
        (changed(image="note.txt"), r"line 3: image .*note\.txt is no image that can be decoded"),
        (
            changed(conversations=said(("human", "<image>"), ("robot", "x"))),
            r"line 3: role `robot` is not one of human",
        ),
        (changed(conversations=said(("human", "<image>"), ("gpt", " "))), r"line 3: an answer is empty"),
        (changed(conversations=said(("human", "<image><image>"), ("gpt", "x"))), r"line 3: 2 <image> markers and 1 im"),
        (changed(conversations=said(("human", "none"), ("gpt", "x"))), r"line 3: 0 <image> markers and 1 images"),
        (changed(conversations=said(("human", "<image>"))), r"line 3: its turns are user; user and assistant must"),
        (changed(conversations=said(("gpt", "<image>"), ("human", "x"))), r"line 3: its turns are assistant, user"),
        (changed(conversations=[]), r"line 3: it has neither `conversations` nor `messages`"),
        (changed(conversations=[{"from": "human", "value": 3}]), r"line 3: what `human` says is no text"),
        (changed(image={"path": "0.jpg"}), r"line 3: `image` is a path"),
        ("{broken", r"line 3: not JSON"),
        ("[1]", r"line 3: a row is an object"),
    ],
)
def test_a_row_that_cannot_be_taken_is_one_sentence_and_nothing_is_written(tmp_path, images, row, sentence):
    (images / "note.txt").write_text("no image")
    path = write(tmp_path, GOOD[:2])
    with path.open("a") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(UserError, match=sentence):
        import_conversations(path, images, tmp_path / "out", 1, "")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_the_command(tmp_path, images, capsys):
    path, out = write(tmp_path, GOOD), tmp_path / "out"
    words = ["data", "import-conversations", str(path), "--images", str(images), "--out", str(out)]
    assert cli.main([*words, "--shards", "3", "--question", "vqa2"]) == 0
    assert "4 conversations in 3 shards" in capsys.readouterr().out
    assert {row.question for row in read(out)} == {"vqa2"}
    assert cli.main([*words, "--shards", "3"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*words, "--shards", "9", "--overwrite"]) == 2
    assert "4 records do not fill 9 shards; set shards=4 or fewer" in capsys.readouterr().err
    assert {row.question for row in read(out)} == {"vqa2"}, "the old folder stands"
    assert cli.main([*words, "--shards", "1", "--overwrite"]) == 0
    assert cli.main(["data", "import-conversations", str(tmp_path / "none"), "--out", str(out)]) == 2
