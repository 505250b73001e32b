"""Why: what a folder of conversations asks, how long its answers are and how much of it is answered without looking
must be known before a week of training; and damage must be found before it is trained on."""

import base64
import json
import re
from dataclasses import replace

import pytest
import simplejpeg

from la4vla import cli
from la4vla.data.inspect.conversations import facts_of
from la4vla.data.inspect.describe import estimated_tokens
from la4vla.data.inspect.verify import verify
from la4vla.data.shards.index import read_index
from la4vla.data.shards.texts import StoredImage
from la4vla.doctor.files import shards_check
from la4vla.types import Turn
from tests.fixtures import make_text, write_texts


@pytest.fixture
def folder(tmp_path):
    write_texts(tmp_path / "texts", 12, 3)
    return tmp_path / "texts"


def test_rows_are_counted_by_question(tmp_path):
    def row(number, question, asked, answer):
        return replace(
            make_text(0), key=f"r{number}", question=question, turns=(Turn("user", asked), Turn("assistant", answer))
        )

    asked = [("count", "How many?", "one"), ("count", "How many?", "one"), ("count", "How many?", "two and more")]
    asked += [("side", "Where is A?", "left"), ("side", "Where is B?", "right")]
    index = write_texts(tmp_path / "texts", [row(number, *item) for number, item in enumerate(asked)], 2)
    count, side = facts_of(index, lambda text: len(text.split()))
    assert (count.name, count.rows, count.distinct, sorted(count.answers)) == ("count", 3, 2, [1, 1, 3])
    assert sorted(count.lengths) == [3, 3, 5] and count.blind == pytest.approx(2 / 3)
    assert (side.name, side.rows, side.blind, side.images) == ("side", 2, 1.0, 0.0)


def test_stats_and_preview_of_the_command(folder, capsys):
    assert cli.main(["data", "stats", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "conversations of test_arm, views front 16 x 16" in text and "12 rows in 3 shards" in text
    assert re.search(r"next +6 +1\.0 ", text) and re.search(r"scene +6 +1\.0 ", text)
    assert cli.main(["data", "preview", str(folder)]) == 0
    html = (folder / "preview.html").read_text()
    assert not [url for url in re.findall(r'(?:src|href)="([^"]+)', html) if not url.startswith("data:")]
    keys = set(re.findall(r"row-\d{5}", html))
    assert len(keys) == 6, "three of each type"
    for key in keys:
        record = make_text(int(key[4:]))
        assert f"<b>{record.answer}</b>" in html and record.turns[0].text in html
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(images) == sum(len(make_text(int(key[4:])).images) for key in keys)
    simplejpeg.decode_jpeg(base64.b64decode(images[0]))
    assert cli.main(["data", "preview", str(folder), str(folder.parent / "again.html")]) == 0
    assert (folder.parent / "again.html").read_text() == html


def test_a_sound_folder_is_verified_and_the_doctor_takes_it(folder, capsys):
    assert cli.main(["data", "verify", str(folder)]) == 0
    assert "4 texts, 4 samples: ok" in capsys.readouterr().out
    check = shards_check(str(folder))
    assert check.status == "ok" and "12 texts" in check.says


def test_damage_is_found(folder, tmp_path):
    made = [make_text(number, image_size=32) for number in range(6)]
    image = made[5].images[1]
    made[5] = replace(made[5], images=(made[5].images[0], StoredImage("front", 1, bytes(image.jpeg)[:-20])))
    write_texts(tmp_path / "bad", made, 2)
    report = verify(tmp_path / "bad")
    assert not report.ok and "row-00005: view front, image 1 cannot be decoded" in report.text()
    raw = json.loads((folder / "index.json").read_text())
    raw["views"]["front"]["height"] = 99
    (folder / "index.json").write_text(json.dumps(raw))
    assert "image 0 is 16 x 16, unlike the index" in verify(folder).text()
    (folder / "about.json").write_text("{")
    assert "about.json is damaged" in verify(folder).text()
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-600])
    assert "shard-000001.tar: has" in verify(folder).text()


def test_an_empty_folder_has_no_numbers(folder):
    raw = json.loads((folder / "index.json").read_text())
    raw["shards"] = []
    (folder / "index.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="holds no conversation"):
        facts_of(read_index(folder, "texts"), estimated_tokens)
