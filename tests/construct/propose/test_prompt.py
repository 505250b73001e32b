"""Why: the prompt is what the labels come from. A label that it lacks is never proposed, an image with the wrong time
shifts every boundary, and an example that breaks the prompt's own rules teaches to break them."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg

from la4vla.chat.json_answer import last_list
from la4vla.config import VlmConfig
from la4vla.construct.episodes import BadEpisode
from la4vla.construct.propose import prompt
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.vocabulary import PRIMITIVES, canonical, lint
from la4vla.types import UserError
from tests.construct.recorded import episode

PAPER_LABELS = "grasp lift lower move place press pull push reorient rotate transport wait wrist_rotate"  # paper 7.3


def wide(level):
    return simplejpeg.encode_jpeg(np.full((180, 640, 3), level, np.uint8), quality=95)


def two_views():
    """10 s at 15 Hz; the grey level of an image is its frame's number."""
    one = episode(1000)
    return replace(
        one, fps=15.0, state=np.repeat(one.state, 2, 0)[:150], action=np.repeat(one.action, 2, 0)[:150], frame_stride=1,
        views=("front", "wrist"), frames=lambda view, numbers: {t: wide(t) for t in numbers},
    )  # fmt: skip


def parts(config):
    system, user = prompt.messages(two_views(), [Keyframe(18, "static"), Keyframe(27, "gripper_close")], config)
    assert (system["role"], user["role"]) == ("system", "user")
    return user["content"]


def pixels(url):
    head, data = url.split(",")
    assert head == "data:image/jpeg;base64"
    return simplejpeg.decode_jpeg(base64.b64decode(data))


def test_every_label_of_the_paper_is_defined_and_offered():
    text = prompt.system_text()
    labels = prompt.SCHEMA["properties"]["segments"]["items"]["properties"]["subaction"]["enum"]
    assert " ".join(sorted(labels)) == PAPER_LABELS
    for label in labels:
        assert f"\n- {label}: " in text
    for item in PRIMITIVES.values():
        assert item.definition in text
    meant = {canonical(label, status) for label in labels for status in ("HOLDING", "EMPTY")}
    assert meant == set(PRIMITIVES)


def test_the_prompts_own_example_obeys_its_rules():
    example = last_list(prompt.system_text().split("times in seconds:")[1])
    assert example is not None
    fields = prompt.SCHEMA["properties"]["segments"]["items"]["required"]
    assert list(example[0]) == fields
    assert lint(example[0]["instruction"]) == []


def test_the_user_message_says_task_length_views_and_keyframes():
    text = parts(VlmConfig())[0]["text"]
    assert "Pick and place a puck to a goal" in text
    assert "10.00 s" in text
    assert "2 views: front, wrist" in text
    assert text.endswith("- 1.20s: static\n- 1.80s: gripper_close")


def test_as_video_each_view_is_one_labelled_stream():
    _, *rest = parts(VlmConfig(fps=2.0, width=320, height=240))
    assert [part["type"] for part in rest] == ["text", "video", "text", "video"]
    assert [part["text"].split(",")[0] for part in rest[::2]] == ["View front", "View wrist"]
    for part in rest[1::2]:
        assert part["fps"] == pytest.approx(2.0, rel=0.02)
        shown = [pixels(url) for url in part["video"]]
        assert {image.shape for image in shown} == {(90, 320, 3)}  # fits, keeps 640 x 180's proportions
        frames = [image.mean() for image in shown]
        np.testing.assert_allclose(frames, np.arange(20) * 7.5, atol=1.6)


def test_as_images_each_frame_has_its_time():
    _, *rest = parts(VlmConfig(fps=1.0, frames_as="images"))
    texts = [part["text"] for part in rest if part["type"] == "text"]
    assert texts[0] == "View front:"
    assert texts.index("View wrist:") == 11
    for time, image in zip(rest[1:21:2], rest[2:21:2], strict=True):
        seconds = float(re.fullmatch(r"(\d+\.\d\d) s", time["text"])[1])
        assert pixels(image["image_url"]["url"]).mean() == pytest.approx(seconds * 15, abs=1.6)


@pytest.mark.parametrize(
    ("frames", "fps", "stride", "shown_fps", "expected"),
    [
        (31, 15.0, 1, 2.0, [0, 8, 15, 22, 30]),
        (83, 80.0, 3, 2.0, [0, 27, 54, 81]),  # a second: 4 frames are shown nevertheless
        (60, 10.0, 2, 1.0, [0, 10, 20, 30, 40, 50]),
        (7, 10.0, 3, 2.0, [0, 3, 6]),  # as many as there are images
        (21, 10.0, 1, 30.0, list(range(21))),
        (1, 10.0, 1, 2.0, [0]),
    ],
)
def test_shown_frames(frames, fps, stride, shown_fps, expected):
    assert prompt.shown_frames(frames, fps, stride, shown_fps) == expected


def test_an_image_that_does_not_decode_names_episode_and_view():
    broken = replace(two_views(), frames=lambda view, numbers: dict.fromkeys(numbers, b"no jpeg"))
    with pytest.raises(BadEpisode, match=r"001000.*front"):
        prompt.messages(broken, [], VlmConfig())


def test_without_images_there_is_nothing_to_look_at():
    with pytest.raises(UserError, match=r"read.images=true"):
        prompt.messages(replace(two_views(), views=()), [], VlmConfig())


def test_a_second_question_names_every_problem():
    assistant, user = prompt.again("", ["first.", "second."], 83, 80.0)
    assert assistant["content"]
    assert "- first.\n- second.\n" in user["content"]
    assert "83 frames" in user["content"]
    assert json.loads(json.dumps([assistant, user])) == [assistant, user]
