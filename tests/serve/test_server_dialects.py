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

from la4vla.serve.dialects import build
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import ARM, VIEWS, picture, serving

torch.set_num_threads(1)
STATE = np.linspace(-0.4, 0.4, 8)
IMAGE, WRIST = picture(1), picture(2)
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
        self.metadata = self.unpack(self.socket.recv(20))
        return self

    def __exit__(self, *error):
        self.socket.__exit__(*error)

    def infer(self, observation: dict) -> dict:
        self.socket.send(msgpack.packb(observation, default=self.spell))
        answer = self.socket.recv(20)
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
            (libero_observation(**{"observation/image": IMAGE.transpose(2, 0, 1)}), "uint8 array [H, W, 3]"),
            (libero_observation(**{"observation/state": STATE.astype(">f8")}), "dtype '>f8' are not read"),
        ):
            with pytest.raises(RuntimeError) as error:
                client.infer(observation)
            assert sentence in str(error.value)
        assert np.array_equal(client.infer(libero_observation())["actions"], expected(policy, 2))


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
                answers.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
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
        ({"image": [[]] * 2}, "list of 3 pictures"),
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
        ("openpi", (), {"trim_state": True}, "only --dialect evo1"),
        ("la4vla", ("image=wrist",), {}, "foreign clients"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(policy, dialect, views, evo1, sentence):
    with pytest.raises(UserError, match=sentence):
        build(dialect, policy, views, 16, False, evo1)


def test_no_opening_without_a_gripper(policy):
    names = tuple(name.replace("gripper", "finger") for name in ARM.action.names)
    fingered = replace(policy, embodiment=replace(ARM, action=replace(ARM.action, names=names)))
    with pytest.raises(UserError, match="no dimension named gripper"):
        build("evo1", fingered, (), 16, False, {"gripper": "opening"})
