"""Why: clients that exist must drive our policies unmodified. The two below are written from the documented formats of
openpi and Evo-1 alone and share no code with the server. What they get is compared with the policy in process, so that
a swapped channel, an inverted gripper or a lost view shows as wrong numbers and not as a low success rate."""

import asyncio
import json
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
import websockets
from websockets.sync.client import connect

from la4vla.serve.dialect import Session
from la4vla.serve.dialects import build
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import ARM, HANG_S, VIEWS, random_image, serving

torch.set_num_threads(1)
STATE = np.linspace(-0.4, 0.4, 8)
IMAGE, WRIST = random_image(1), random_image(2)
PROMPT = "put the bowl on the plate"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "arm", ARM, VIEWS))


@pytest.fixture(scope="module")
def sawyer(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "sawyer", EMBODIMENT, ("corner2",)))


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "blind", ARM, ()))


@pytest.fixture(scope="module")
def evo1_url(policy):
    with serving(policy, dialect="evo1") as (url, _):
        yield url


def expected(policy, query: int = 0, task: str = "connection", **views) -> np.ndarray:
    seen = Observation(views or {"agentview": IMAGE, "wrist": WRIST}, STATE.astype(np.float32), PROMPT)
    return policy.infer([seen], [NoiseKey(0, task, 0, query)])[0]


class OpenpiClient:
    """openpi's client: msgpack, arrays as maps with keys of bytes, one metadata message first, text is an error."""

    def __init__(self, url: str) -> None:
        self.socket = connect(url, compression=None, max_size=None)

    def __enter__(self):
        self.socket.__enter__()
        self.metadata = self.unpack(self.socket.recv(HANG_S))
        return self

    def __exit__(self, *error):
        self.socket.__exit__(*error)

    def infer(self, observation: dict) -> dict:
        self.socket.send(msgpack.packb(observation, default=self.spell))
        answer = self.socket.recv(HANG_S)
        if isinstance(answer, str):
            raise RuntimeError(f"Error in inference server:\n{answer}")
        return self.unpack(answer)

    @staticmethod
    def spell(value):
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        raise TypeError(type(value))

    @staticmethod
    def unpack(message):
        def array(value):
            if b"__ndarray__" in value:
                return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
            return value

        return msgpack.unpackb(message, object_hook=array)


def libero_observation(**changes) -> dict:
    """What openpi's LIBERO client sends: the state is float64."""
    return {
        "observation/image": IMAGE,
        "observation/wrist_image": WRIST,
        "observation/state": STATE,
        "prompt": PROMPT,
    } | changes


def test_an_openpi_client_gets_the_policys_chunks(policy):
    with serving(policy, dialect="openpi") as (url, _), OpenpiClient(url) as client:
        assert client.metadata["identity"] == policy.identity
        for query in range(2):
            answer = client.infer(libero_observation())
            assert np.array_equal(answer["actions"], expected(policy, query))
            assert answer["policy_timing"]["infer_ms"] > 0 < answer["server_timing"]["infer_ms"]
            assert ("prev_total_ms" in answer["server_timing"]) is (query == 1)
        for observation, sentence in (
            (libero_observation(prompt=3), "`prompt` must be text"),
            ({key: value for key, value in libero_observation().items() if "wrist" not in key}, "wrist_image"),
            (libero_observation(**{"observation/third_image": IMAGE}), "third_image' shows a view"),
            (libero_observation(**{"observation/image": IMAGE[:, :, :2]}), "uint8 array [H, W, 3]"),
            (libero_observation(**{"observation/image": IMAGE.transpose(1, 2, 0)}), "uint8 array [H, W, 3]"),
            (
                libero_observation(**{"observation/state": STATE.astype(">f8")}),
                "`observation/state` is an array of dtype '>f8'",
            ),
        ):
            with pytest.raises(RuntimeError) as error:
                client.infer(observation)
            assert sentence in str(error.value)
        assert np.array_equal(client.infer(libero_observation())["actions"], expected(policy, 2))


def droid_observation() -> dict:
    """What openpi's DROID client sends."""
    return {
        "observation/exterior_image_1_left": IMAGE,
        "observation/wrist_image_left": WRIST,
        "observation/joint_position": STATE[:7],
        "observation/gripper_position": STATE[7:],
        "prompt": PROMPT,
    }


def ur5_observation() -> dict:
    """What openpi's UR5 example sends: six joints, and a gripper that is a single number."""
    return {"base_rgb": IMAGE, "wrist_rgb": WRIST, "joints": STATE[:6], "gripper": STATE[6], "prompt": PROMPT}


def aloha_observation() -> dict:
    """What openpi's ALOHA clients send: four cameras as [3, H, W], fourteen numbers, no instruction."""
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    images = {name: random_image(number).transpose(2, 0, 1) for number, name in enumerate(cameras)}
    return {"state": np.linspace(-1, 1, 14), "images": images}


@pytest.mark.parametrize(
    ("message", "views", "options"),
    [
        (
            droid_observation(),
            ("observation/exterior_image_1_left=agentview", "observation/wrist_image_left=wrist"),
            {"state": "observation/joint_position,observation/gripper_position"},
        ),
        (
            {"observation": {"state": STATE, "image": IMAGE.transpose(2, 0, 1), "wrist_image": WRIST}},
            (),
            {"prompt": PROMPT},
        ),
    ],
    ids=["droid", "nested"],
)
def test_openpis_other_robots_are_served(policy, message, views, options):
    with serving(policy, dialect="openpi", views=views, openpi=options) as (url, _), OpenpiClient(url) as client:
        assert np.array_equal(client.infer(message)["actions"], expected(policy))


@pytest.mark.parametrize(
    ("message", "views", "options", "state", "images"),
    [
        (
            aloha_observation(),
            ("images/cam_right_wrist=wrist", "images/cam_high=agentview"),
            {"state": "state", "prompt": PROMPT},
            np.linspace(-1, 1, 14),
            (random_image(0), random_image(3)),
        ),
        (
            ur5_observation(),
            ("base_rgb=agentview", "wrist_rgb=wrist"),
            {"state": "joints,gripper"},
            STATE[:7],
            (IMAGE, WRIST),
        ),
    ],
    ids=["aloha", "ur5"],
)
def test_robots_of_other_sizes_are_read(policy, message, views, options, state, images):
    """The tiny preset has no room for ALOHA's fourteen dimensions, so this ends where the policy would be asked."""
    body = replace(ARM, state=replace(ARM.state, names=tuple(f"joint{number}" for number in range(len(state)))))
    dialect = build("openpi", replace(policy, embodiment=body), views, openpi=options)
    queries = dialect.read(msgpack.packb(message, default=OpenpiClient.spell), Session(0, "robot", 0))
    (observation,) = queries.observations
    assert observation.instruction == PROMPT and np.array_equal(observation.state, state.astype(np.float32))
    assert np.array_equal(observation.views["agentview"], images[0])
    assert np.array_equal(observation.views["wrist"], images[1])


def test_a_key_that_is_missing_is_named_with_the_option_that_mends_it(policy):
    with serving(policy, dialect="openpi") as (url, _), OpenpiClient(url) as client:
        for message, sentence in (
            (droid_observation(), "shows a view that this policy (agentview, wrist) was not trained with; serve with"),
            ({"images": {"cam": IMAGE[:, :, 0]}}, "no `observation/image`; it has 'images/cam', and --view says which"),
            ({"observation/image": IMAGE, "observation/wrist_image": WRIST, "joints": STATE}, "and --state says"),
            ({key: libero_observation()[key] for key in libero_observation() if key != "prompt"}, "and --prompt says"),
        ):
            with pytest.raises(RuntimeError) as error:
                client.infer(message)
            assert sentence in str(error.value)


def test_what_nobody_asked_for_may_hold_anything(policy):
    """A depth image, a mask, a clock, a log and a table of a robot's own beside what the policy takes."""
    others = {
        "observation/depth": np.zeros((48, 64), "<u2"),
        "mask": np.ones((48, 64), bool),
        "empty": np.zeros((0, 4)),
        "operator": np.str_("a name"),
        "clock": msgpack.Timestamp(1),
        "log": "x" * 20_000,
        "timings": [0.1] * 100,
        "table": {1: "a key of another type", "inner": np.zeros(2, "<f2")},
    }
    with serving(policy, dialect="openpi") as (url, _), OpenpiClient(url) as client:
        assert np.array_equal(client.infer(libero_observation(**others))["actions"], expected(policy))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (msgpack.packb({"prompt": PROMPT})[:-3], "damaged (Unpack failed: incomplete input)"),
        (msgpack.packb({"prompt": PROMPT}) + b"x", "something follows its end"),
        (b"\xc1", "a byte that means nothing in msgpack"),
        (b"\x91" * 2000, "nested too deeply"),
        (b"\x81\xa1\xff\x00", "text that is not UTF-8"),
        (b"\x81\x90\x00", "a map with a list or a map for a key"),
        ("{}", "this is a text message; send msgpack"),
    ],
)
def test_what_cannot_be_read_says_why(policy, message, sentence):
    with serving(policy, dialect="openpi") as (url, _), OpenpiClient(url) as client:
        client.socket.send(message)
        assert sentence in client.socket.recv(HANG_S)
        assert len(client.infer(libero_observation())["actions"]) == 16


def test_connections_are_told_apart_by_number_or_by_the_name_they_choose(policy):
    with serving(policy, dialect="openpi") as (url, _):
        with OpenpiClient(url) as first, OpenpiClient(url) as second:
            assert np.array_equal(first.infer(libero_observation())["actions"], expected(policy))
            assert not np.array_equal(second.infer(libero_observation())["actions"], expected(policy))
        for _ in range(2):
            with OpenpiClient(f"{url}/robot-7") as named:
                actions = named.infer(libero_observation())["actions"]
                assert np.array_equal(actions, expected(policy, task="robot-7"))


def test_the_user_may_name_the_clients_views(policy):
    swapped = ("observation/image=wrist", "base_0_rgb=agentview")
    with serving(policy, dialect="openpi", views=swapped) as (url, _), OpenpiClient(url) as client:
        answer = client.infer(libero_observation(base_0_rgb=WRIST))
        assert np.array_equal(answer["actions"], expected(policy, agentview=WRIST, wrist=IMAGE))


def test_a_blind_policy_takes_any_client_and_sees_nothing(blind):
    with serving(blind, dialect="openpi") as (url, _), OpenpiClient(url) as client:
        seen = Observation({}, STATE.astype(np.float32), PROMPT)
        (chunk,) = blind.infer([seen], [NoiseKey(0, "connection", 0, 0)])
        assert np.array_equal(client.infer(libero_observation())["actions"], chunk)


def evo1_request(**changes) -> dict:
    """What Evo-1's LIBERO client sends, but for the order of the channels."""
    dummy = np.zeros((64, 64, 3), np.uint8)
    return {
        "image": [image[:, :, ::-1].tolist() for image in (IMAGE, WRIST, dummy)],
        "state": STATE.tolist(),
        "prompt": PROMPT,
        "image_mask": [1, 1, 0],
        "action_mask": [1] * 7 + [0] * 17,
    } | changes


def evo1_answers(url: str, *requests: dict) -> list:
    """Evo-1's clients: JSON in text messages, an asyncio connection, no handshake."""

    async def talk():
        async with websockets.connect(url, max_size=100_000_000) as socket:
            answers = []
            for request in requests:
                await socket.send(json.dumps(request))
                answers.append(json.loads(await asyncio.wait_for(socket.recv(), HANG_S)))
            return answers

    return asyncio.run(talk())


def test_an_evo1_client_gets_the_policys_chunks(policy):
    with serving(policy, dialect="evo1") as (url, _):
        plain, padded = evo1_answers(url, evo1_request(), evo1_request(state=[*STATE.tolist(), *[0.0] * 16]))
    for query, answer in enumerate((plain, padded)):
        actions_TA = np.array(answer)
        assert actions_TA.shape == (16, 24) and not actions_TA[:, 7:].any()
        assert np.array_equal(actions_TA[:, :7], expected(policy, query))


def test_an_evo1_libero_client_sends_rgb_and_reads_an_opening(policy):
    request = evo1_request(image=[image.tolist() for image in (IMAGE, WRIST, IMAGE)])
    options = {"channels": "rgb", "gripper": "opening"}
    with serving(policy, dialect="evo1", evo1=options) as (url, _):
        (answer,) = evo1_answers(url, request)
    chunk = expected(policy)
    assert np.array_equal(np.array(answer)[:, :6], chunk[:, :6])
    np.testing.assert_allclose(np.array(answer)[:, 6], (1 - chunk[:, 6]) / 2, atol=1e-6)  # -1 = open becomes 1


def test_an_evo1_metaworld_client_shows_one_view_and_a_longer_state(sawyer):
    """Eight numbers, the last four of them the object's (FACTS 4.7): the policy must not see them, and nobody may be
    misled about that."""
    dummy = np.zeros((64, 64, 3), int).tolist()
    request = evo1_request(
        image=[IMAGE[:, :, ::-1].tolist(), dummy, dummy], image_mask=[1, 0, 0], action_mask=[1] * 4 + [0] * 20
    )
    seen = Observation({"corner2": IMAGE}, STATE[:4].astype(np.float32), PROMPT)
    with serving(sawyer, dialect="evo1") as (url, _):
        (refused,) = evo1_answers(url, request)
        assert "serve with --trim-state" in refused["error"]
    with serving(sawyer, dialect="evo1", evo1={"trim_state": True}) as (url, _):
        (answer,) = evo1_answers(url, request)
    (chunk,) = sawyer.infer([seen], [NoiseKey(0, "connection", 0, 0)])
    assert np.array_equal(np.array(answer)[:, :4], chunk)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"action_mask": [1] * 4 + [0] * 20}, "7 ones"),
        ({"action_mask": [1] * 7}, "7 ones"),
        ({"image": [[]] * 2}, "list of 3 images"),
        ({"image_mask": [1, 0, 0]}, "hides slot 1"),
        ({"image_mask": [1, 1, 1]}, "shows a view"),
        ({"image": [[[[256, 0, 0]]], [[[0, 0, 0]]], []]}, "integers from 0 to 255"),
        ({"image": [[[[0.5, 0, 0]]], [[[0, 0, 0]]], []]}, "integers from 0 to 255"),
        ({"image": [[[["x" * 10_000, 0, 0]]], [[[0, 0, 0]]], []]}, "even lists of numbers"),
        ({"image": [[[[0, 0, 0], [0]]], [[[0, 0, 0]]], []]}, "even lists of numbers"),
        ({"state": [0.0] * 7}, "has 7 numbers"),
        ({"state": [1e39] * 8}, "not finite"),
        ({"state": [float("nan")] * 8}, "NaN"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"prompt": None}, "must be text"),
        ({"prompt": "x" * 20_000}, "`prompt` has 20000 characters; at most 16384 are read"),
    ],
)
def test_what_an_evo1_client_gets_wrong_is_one_sentence(evo1_url, changes, sentence):
    refused, answer = evo1_answers(evo1_url, evo1_request(**changes), evo1_request())
    assert sentence in refused["error"] and "\n" not in refused["error"]
    assert len(answer) == 16


@pytest.mark.parametrize(
    ("dialect", "views", "evo1", "sentence"),
    [
        ("evo1", ("3=wrist", "0=agentview"), {}, "numbered 0, 1, 2"),
        ("evo1", ("0=wrist",), {}, "which has agentview, wrist"),
        ("openpi", ("agentview", "image=wrist"), {}, "KEY=VIEW"),
        ("openpi", ("image=wrist", "image=agentview"), {}, "KEY=VIEW"),
        ("openpi", (), {"trim_state": True}, "--trim-state: only --dialect evo1 has"),
        ("la4vla", ("image=wrist",), {}, "foreign clients"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(policy, dialect, views, evo1, sentence):
    with pytest.raises(UserError, match=sentence):
        build(dialect, policy, views, evo1=evo1)


def test_options_of_openpis_dialect_belong_to_it(policy):
    with pytest.raises(UserError, match="--state, --prompt: only --dialect openpi has"):
        build("evo1", policy, openpi={"state": "a", "prompt": "lift"})
    with pytest.raises(UserError, match=r"--state takes .* as in a,b"):
        build("openpi", policy, openpi={"state": "a,,b"})


def test_no_opening_without_a_gripper(policy):
    names = tuple(name.replace("gripper", "finger") for name in ARM.action.names)
    fingered = replace(policy, embodiment=replace(ARM, action=replace(ARM.action, names=names)))
    with pytest.raises(UserError, match="no dimension named gripper"):
        build("evo1", fingered, evo1={"gripper": "opening"})
