"""Why: a client that sent millimetres for metres, or letterboxed images, got plausible chunks and no success, and
nothing said why. What differs from the training data is said where people look, or refused; what a robot does in normal
work is not said. The served command's own test (test_server.py) asks it in millimetres."""

from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from la4vla.data.normalize import Stats
from la4vla.data.transforms import Chain
from la4vla.serve import wire
from la4vla.serve.client import RemotePolicy
from la4vla.serve.input_check import InputCheck
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.sim.metaworld import EMBODIMENT as SAWYER
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import ARM, HANG_S, VIEWS, random_image, serving
from tests.serve.test_server_dialects import OpenpiClient, evo1_answers, evo1_request, libero_observation

torch.set_num_threads(1)
KEY = NoiseKey(0, "any", 0, 0)
STATE = np.linspace(-0.4, 0.4, 8).astype(np.float32)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Trained on images of 48 x 64 and on states from -0.7 to 0.7."""
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "arm", ARM, VIEWS, size=(48, 64)))


def image(height: int = 48, width: int = 64) -> np.ndarray:
    return random_image(height, 640)[:height, :width]


def observation(state=STATE, **views) -> Observation:
    return Observation({"agentview": image(), "wrist": image(96, 128)} | views, np.asarray(state, np.float32), "lift")


def checked(policy) -> InputCheck:
    return InputCheck(policy.embodiment.state, policy.trained)


def quickstart_check(policy) -> InputCheck:
    """Of the quickstart's own statistics: x y z gripper of its demonstrations."""
    low, high = (-0.2459, 0.4003, 0.0527, 0.2637), (0.2607, 0.8975, 0.4252, 1.0)
    stats = Stats(SAWYER.state.names, 10_000, low, high, low, high, low, high)
    chain = policy.processor.chain
    normalize = replace(chain.normalize, state=stats)
    changed = Chain(tuple(normalize if item is chain.normalize else item for item in chain.transforms))
    return checked(replace(policy, embodiment=SAWYER, processor=replace(policy.processor, chain=changed)))


@pytest.mark.parametrize(
    ("state", "outside"),
    [
        ((-0.2459, 0.8975, 0.0527, 1.0), []),  # demonstrated
        ((0.5, 1.0, 0.5, 1.0), []),  # the ends of MetaWorld's workspace, where an untrained policy takes the arm
        ((-0.5, 0.4, 0.05, 0.0), []),
        ((0.0, 0.0, 0.0, 0.0), ["y"]),  # nobody filled in the state
        ((50.0, 600.0, 200.0, 0.5), ["x", "y", "z"]),  # millimetres
        ((0.6, 0.0, 0.2, 0.5), ["x", "y"]),  # x and y swapped
        ((0.0, 0.6, 0.2, 100.0), ["gripper"]),  # percent
        ((0.5, 0.0, 0.6, 0.2), ["y"]),  # the gripper first
    ],
)
def test_a_state_that_training_never_had_is_told_from_a_robot_at_work(policy, state, outside):
    view = {name: image() for name in VIEWS}
    found = quickstart_check(policy).differences([Observation(view, np.array(state, np.float32), "")])
    assert [difference.dimension for difference in found] == outside


def test_a_dimension_that_never_moved_has_some_room(tmp_path):
    policy = ServedPolicy.load(write_checkpoint(tmp_path / "arm", ARM, ()))
    chain, still = policy.processor.chain, (0.2,) * 8
    normalize = replace(chain.normalize, state=replace(chain.normalize.state, min=still, max=still))
    changed = Chain(tuple(normalize if item is chain.normalize else item for item in chain.transforms))
    check = checked(replace(policy, processor=replace(policy.processor, chain=changed)))
    near, far = np.full(8, 0.24, np.float32), np.full(8, 0.2, np.float32)
    far[1] = 0.3
    assert not check.differences([Observation({}, near, "")])
    (difference,) = check.differences([Observation({}, far, "")])
    assert difference.what == "state y is 0.3, which is 0.1 outside the trained range of 0.2 to 0.2"


def test_an_angle_counted_from_another_side_is_not_outside(policy):
    turned = STATE.copy()
    turned[3:6] = (0.1, 0.2, 0.3)
    norm = np.linalg.norm(turned[3:6])
    turned[3:6] *= (norm - 2 * np.pi) / norm
    assert not checked(policy).differences([observation(turned)])


def test_degrees_are_told_from_such_angles(policy):
    degrees = STATE.copy()
    degrees[3:6] = (180.0, 0.0, -2.0)
    found = checked(policy).differences([observation(degrees)])
    assert [difference.dimension for difference in found] == ["rx", "rz"]


@pytest.mark.parametrize(
    ("views", "what"),
    [
        ({}, None),
        ({"wrist": image(480, 640)}, None),
        ({"wrist": image(33, 44)}, None),
        ({"wrist": image(34, 45)}, None),  # rounded to whole pixels
        ({"wrist": image(64, 48)}, "view wrist is 64 x 48 pixels (height x width), and training had 48 x 64"),
        ({"wrist": image(224, 224)}, "view wrist is 224 x 224 pixels"),  # letterboxed, as openpi's clients do
        ({"wrist": np.full((48, 64, 3), (0, 0, 7), np.uint8)}, "view wrist has a single colour (0 0 7)"),
        ({"wrist": np.pad(np.zeros((47, 64, 3), np.uint8), ((1, 0), (0, 0), (0, 0)), constant_values=1)}, None),
    ],
)
def test_an_image_that_training_cannot_have_had(policy, views, what):
    found = checked(policy).differences([observation(**views)])
    assert len(found) == (what is not None)
    assert all(difference.what.startswith(what) and not difference.dimension for difference in found)


def test_any_of_the_trained_sizes_will_do(policy):
    both = {"agentview": ((48, 64),), "wrist": ((48, 64), (112, 112))}
    assert not checked(replace(policy, view_sizes=both)).differences([observation(wrist=image(224, 224))])


def test_the_hello_says_what_training_had(policy):
    with serving(policy) as (url, _), RemotePolicy(url) as remote:
        assert remote.contract["view_sizes"] == {"agentview": [[48, 64]], "wrist": [[48, 64]]}
        assert remote.contract["state_min"] == [-0.7] * 8 and remote.contract["state_max"] == [0.7] * 8
        assert remote.trained == policy.trained and remote.contract["image_size"] == 112


STRANGE = observation(STATE * 1000, wrist=image(224, 224), agentview=np.zeros((48, 64, 3), np.uint8))
X = "state x is -400, which is 399.3 outside the trained range of -0.7 to 0.7, 285 times that range; send x y z rx "


def test_our_client_is_told_once_and_the_actions_stay_those_of_the_policy(policy, capsys):
    with serving(policy) as (url, _):
        for _ in range(2):
            with RemotePolicy(url) as remote:
                for state, outside in (
                    (STATE, []),
                    (STATE * 1000, [*ARM.state.names]),
                    (STATE * 1000, [*ARM.state.names]),
                ):
                    seen = replace(STRANGE, state=state)
                    assert np.array_equal(remote.infer([seen], [KEY])[0], policy.infer([seen], [KEY])[0])
                    assert remote.timing["outside"] == outside
    lines = capsys.readouterr().err.splitlines()
    log = [line for line in lines if line.startswith("client 1: ")]
    told = [line for line in lines if line.startswith(url)]
    assert len(log) == 10 and len(told) == 20 and len(lines) == 40
    assert [line.removeprefix("client 1: ") for line in log] == [line.removeprefix(f"{url}: ") for line in told[10:]]
    for words in (X, "view wrist is 224 x 224 pixels", "view agentview has a single colour (0 0 0)"):
        assert sum(words in line for line in log) == 1


def test_queries_of_one_message_are_all_looked_at(policy):
    with serving(policy) as (url, _), RemotePolicy(url) as remote:
        far = STATE.copy()
        far[7] = 9
        remote.infer([observation(), observation(far)], [KEY, KEY])
        assert remote.timing["outside"] == ["right"]


def test_openpis_clients_are_told_in_the_first_reply(policy):
    """A number in `server_timing`, which their examples average, and sentences beside it."""
    message = libero_observation(**{"observation/state": STATE * 1000})
    with serving(policy, dialect="openpi") as (url, _), OpenpiClient(url) as client:
        first, second = client.infer(message), client.infer(message)
    assert first["server_timing"]["outside"] == second["server_timing"]["outside"] == 8
    assert len(first["notes"]) == 10 and first["notes"][0].startswith(X) and second["notes"] == []


def test_evo1s_clients_have_no_place_for_it_and_the_log_has(policy, capsys):
    with serving(policy, dialect="evo1") as (url, _):
        answers = evo1_answers(url, *[evo1_request(state=(STATE * 1000).tolist())] * 2)
    assert np.array(answers).shape == (2, 16, 24)
    log = capsys.readouterr().err.splitlines()
    assert len(log) == 10 and log[0].startswith(f"client 0: {X}")


def test_a_note_waits_for_the_first_reply_that_can_carry_it(policy):
    """The first query's instruction is too long, and its error has no place for notes."""
    with serving(policy) as (url, _), connect(url) as connection:
        connection.recv(HANG_S)
        query = {"views": dict(STRANGE.views), "state": STRANGE.state, "instruction": "word " * 3000}
        kinds = []
        for instruction in ("word " * 3000, "lift", "lift"):
            connection.send(wire.pack({"type": "infer", "queries": [query | {"instruction": instruction}]}))
            answer = msgpack.unpackb(connection.recv(HANG_S))
            kinds.append((answer["type"], len(answer.get("notes", []))))
    assert kinds == [("error", 0), ("actions", 10), ("actions", 0)]


def test_a_strict_server_refuses_and_computes_nothing(policy, capsys):
    class Untouched(ServedPolicy):
        def infer(self, observations, noise_keys):
            assert observations[0].state.max() < 1
            return super().infer(observations, noise_keys)

    with serving(Untouched(**vars(policy)), strict=True) as (url, _), RemotePolicy(url) as remote:
        far = STATE.copy()
        far[0] = 400.0
        for strange, words in (
            (observation(far), "refuses: --strict: state x is 400, which is 399.3 outside the trained range"),
            (observation(wrist=image(224, 224)), "--strict: view wrist is 224 x 224 pixels"),
            (observation(far, agentview=np.zeros((48, 64, 3), np.uint8)), "single colour (0 0 0); send x y z"),
        ):
            with pytest.raises(UserError) as error:
                remote.infer([strange], [KEY])
            assert words in str(error.value)
        assert np.array_equal(remote.infer([observation()], [KEY])[0], policy.infer([observation()], [KEY])[0])
    assert len(capsys.readouterr().err.splitlines()) == 3
