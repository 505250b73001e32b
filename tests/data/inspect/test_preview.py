"""Why: the preview is what a person trusts before a week of training: its counts must be the folder's, its strips the
clips that they stand beside, and it must open on a machine without a network."""

import base64
import math
import re

import numpy as np
import pytest
import simplejpeg

from la4vla import cli
from la4vla.data.inspect.contents import BINS, Label, contents
from la4vla.data.inspect.preview import CLIPS, preview
from la4vla.page.strips import IMAGES, evenly, plot, strip
from la4vla.types import UserError
from tests.fixtures import make_clip, write_shards

PICTURE = re.compile(r'src="data:image/jpeg;base64,([^"]+)"')


def label(instruction="move up", primitive="move", frames=10, quality=2.0):
    return Label(primitive, "EMPTY", instruction, frames, 20.0, quality)


def fetched(html):
    """What a browser would ask others for."""
    return [url for url in re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>\s]+)', html) if url[:5] != "data:"]


def test_counts_by_hand():
    labels = [label(), label(frames=30), label("lift", "lift", 20, 3.0), label("push", "push", 40, 2.5)]
    found = contents(labels)
    assert (found["clips"], found["frames"], found["frames_per_clip"]) == (4, 100, 25)
    assert found["seconds_per_clip"] == pytest.approx(1.25)
    assert list(found["primitives"].items()) == [
        ("move", {"clips": 2, "frames": 40}),
        ("lift", {"clips": 1, "frames": 20}),
        ("push", {"clips": 1, "frames": 40}),
    ]
    said = found["instructions"]
    assert (said["distinct"], said["words"], said["entropy_bits"]) == (3, 4, pytest.approx(1.5))
    assert said["effective"] == pytest.approx(2**1.5)
    assert said["top"][0] == {"instruction": "move up", "clips": 2}
    assert {row["quality"]: row["clips"] for row in found["quality"]["histogram"] if row["clips"]} == {
        2: 2,
        2.5: 1,
        3: 1,
    }


@pytest.mark.parametrize("frames", [[5], [3, 4, 4], list(range(1, 300)), [10] * 500 + [9000]])
def test_the_histogram_of_lengths_holds_every_clip_once(frames):
    bins = contents([label(frames=count) for count in frames])["lengths"]["histogram"]
    assert len(bins) <= BINS
    for row in bins:
        assert row["clips"] == sum(row["from"] <= count < (row["to"] or math.inf) for count in frames)
    assert sum(row["clips"] for row in bins) == len(frames)


def test_nothing_is_counted_as_nothing():
    found = contents([])
    assert (found["clips"], found["frames"], found["frames_per_clip"], found["quality"]["mean"]) == (0, 0, None, None)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (11, [0, 2, 4, 6, 8, 10])])
def test_images_are_evenly_spaced(count, expected):
    assert evenly(count, IMAGES) == expected


def test_a_strip_shows_the_frames_it_names():
    images = {t: simplejpeg.encode_jpeg(np.full((60, 80, 3), 8 * t, np.uint8)) for t in range(0, 30, 3)}
    made = strip("front", images)
    joined = simplejpeg.decode_jpeg(base64.b64decode(made.uri.partition(",")[2]))
    parts = np.split(joined, len(made.frames), axis=1)
    assert [made.frames[0], made.frames[-1], len(made.frames)] == [0, 27, IMAGES]
    assert [round(part.mean() / 8) for part in parts] == list(made.frames)


def test_a_plot_is_relative_to_the_start_and_open_is_up():
    path = np.array([[5.0, 1.0], [5.0, 1.1], [5.0, 1.2]])
    drawn = plot(path, ("x", "y"), "m", np.array([1.0, 0.5, 0.0]))
    assert drawn.reach == pytest.approx(0.2)
    x, y, gripper = (
        [float(point.split(",")[1]) for point in curve.points.split()] for curve in (*drawn.curves, drawn.gripper)
    )
    assert x == [drawn.zero] * 3
    assert y[0] == drawn.zero > y[1] > y[2]
    assert gripper[0] < gripper[1] < gripper[2]


@pytest.mark.parametrize("frames", [1, 2])
def test_still_and_short_clips_can_be_drawn(frames):
    drawn = plot(np.zeros((frames, 1)), ("x",), "m", None)
    assert drawn.reach == 0 and len(drawn.curves[0].points.split()) == frames


def test_the_page_holds_the_folder_and_fetches_nothing(tmp_path):
    index = write_shards(tmp_path / "vla", clips=40, views=("front", "wrist"))
    html = preview(str(tmp_path / "vla")).read_text()
    assert fetched(html) == []
    assert len(PICTURE.findall(html)) == 2 * CLIPS
    assert f"{index.frames:,}" in html and "Move the gripper left." in html
    assert len({key for shard in index.shards for key in shard.keys if f">{key}<" in html}) == CLIPS


def test_a_folder_without_images_shows_signals(tmp_path):
    write_shards(tmp_path / "la", clips=6)
    html = preview(str(tmp_path / "la")).read_text()
    assert not PICTURE.findall(html)
    assert html.count('aria-label="signals of the clip"') == 6


def test_the_same_folder_gives_the_same_page_wherever_it_is_read_from(tmp_path):
    write_shards(tmp_path / "vla", clips=40, views=("front",))
    local = preview(str(tmp_path / "vla")).read_text()
    assert preview(str(tmp_path / "vla")).read_text() == local
    piped = f"pipe:cat {tmp_path}/vla/{{}}"
    remote = preview(piped, str(tmp_path / "new" / "out.html")).read_text()
    assert PICTURE.findall(remote) == PICTURE.findall(local)


def test_instructions_are_text_not_html(tmp_path):
    write_shards(tmp_path / "la", clips=[make_clip(0, 5, instruction="<script>alert(1)</script>")], shards=1)
    assert "<script" not in preview(str(tmp_path / "la")).read_text()


def test_bad_input_has_a_cure(tmp_path):
    write_shards(tmp_path / "la")
    with pytest.raises(UserError, match=r"OUT\.html"):
        preview(f"pipe:cat {tmp_path}/la/{{}}")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        preview(str(tmp_path / "la"), str(tmp_path / "file" / "out.html"))
    shard = sorted((tmp_path / "la").glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[:-600])
    with pytest.raises(UserError, match=shard.name):
        preview(str(tmp_path / "la"))


def test_the_command_reaches_it(tmp_path, capsys):
    write_shards(tmp_path / "la")
    assert cli.main(["data", "preview", str(tmp_path / "la")]) == 0
    assert "preview.html" in capsys.readouterr().out and (tmp_path / "la" / "preview.html").is_file()
    assert cli.main(["data", "verify", str(tmp_path / "la")]) == 0


def test_an_image_that_does_not_decode_is_named():
    with pytest.raises(UserError, match=r"front: the image of the clip's frame 3 .*read\.decode"):
        strip("front", {3: b"\xff\xd8\xff\xe0"})
