"""Why: a model that writes acts through a chain of questions, and every link can break: an answer of the wrong form, a
sub-task that is not done, an episode that is asked beside others. A rollout must survive all of it, do nothing that was
not written, and leave every word behind to be read."""

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.results import results
from la4vla.action_text.action_text import CODECS, ActionText
from la4vla.action_text.config import ActionTextConfig
from la4vla.config import SamplingConfig, TextPolicyConfig, VlmConfig, load
from la4vla.questions.wordings import ask
from la4vla.serve.policy_like import EpisodeKey, NoiseKey
from la4vla.serve.text.answers import read_completion, read_plan, read_subtasks
from la4vla.serve.text.policy import TextPolicy
from la4vla.serve.text.safety import filtered
from la4vla.serve.text.writer import VlmWriter, WriterAnswer
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Observation, UserError
from la4vla.vlm.load import build_vlm
from la4vla.vlm.rare_tokens import with_tokens
from tests.construct.model_server import serving as chat_server
from tests.serve.text_writers import ACTIONS, Mangling, Scripted, asked, usual

SAWYER = {"forward": "+y", "left": "-x", "up": "+z"}
MANGLED = 10_000


def text_policy(writer, codec="decimals", **settings):
    action = ActionText.open(ActionTextConfig(codec=codec, **SAWYER), EMBODIMENT)
    config = TextPolicyConfig(**{"views": ["corner4"], "chunk": 4, **settings})
    return TextPolicy.of(config, writer, action, "w" * 64, 7, {})


def seen(step=0, place=(0.0, 0.6, 0.2), instruction="push the button", **privileged):
    image = np.full((16, 16, 3), step % 256, np.uint8)
    state = np.array([*place, 1.0], np.float32)
    return Observation({"corner4": image, "topview": image}, state, instruction, privileged)


def run(policy, queries, episode=0, see=seen):
    """Chunks and texts of the first queries of an episode."""
    policy.open(EpisodeKey("t", episode, 0))
    chunks, said = [], []
    for number in range(queries):
        chunks += policy.infer([see(number)], [NoiseKey(0, "t", episode, number)])
        said += policy.said()
    return chunks, said


def flat(said):
    return [text for texts in said for text in texts]


def test_the_questions_come_in_the_papers_order_and_words():
    writer = Scripted()
    policy = text_policy(writer)
    _, said = run(policy, 10)
    assert writer.questions == ["subtasks", "plan", "actions", "plan", "actions"]
    subtasks, plan, actions = (prompts[0] for prompts, _, _ in writer.batches[:3])
    assert subtasks.turns[0].text == ask("subtasks", task="push the button")
    assert subtasks.turns[0].text.startswith("Describe the sequence of remaining high-level steps required to complete")
    assert plan.turns[0].text == ask("plan", subtask="move right")
    assert actions.turns[0].text == ask("actions", "decimals", subtask="move right", plan="Primarily right (-dy).")
    assert "PROVIDE ONLY THE PYTHON LIST" in actions.turns[0].text
    temperatures = [(sampling.temperature, top_p) for _, sampling, top_p in writer.batches[:3]]
    assert temperatures == [(0.5, 0.95), (0.1, 0.95), (0.5, 0.95)]
    assert all(len(prompt.images) == 1 and prompt.turns[0].images == (0,) for prompt in (subtasks, plan, actions))
    assert [text.question for text in said[0]] == ["subtasks", "plan", "actions"]
    assert said[0][2].text == ACTIONS and said[0][2].subtask == "move right"


def test_what_was_written_is_played_and_then_the_hand_is_still():
    policy = text_policy(Scripted())
    chunks, said = run(policy, 12)
    # right 5 cm is +x on this robot; then the gripper, which was open, closes at the end of the first row
    first = np.concatenate(chunks[:5])
    np.testing.assert_allclose(first.sum(0)[:3], [5, 0, -3], atol=1e-5)
    assert (first[:5, 3] == -1).all() and (first[5:15, 3] == 1).all() and not first[5:15, :3].any()
    assert len(first) == 5 + 10 + 3 and all(len(chunk) <= 4 for chunk in chunks)
    second = np.concatenate(chunks[5:7])  # the same text again, the gripper closed already
    np.testing.assert_allclose(second.sum(0)[:3], [5, 0, -3], atol=1e-5)
    assert len(second) == 8 and (second[:, 3] == 1).all()
    rest = np.concatenate(chunks[7:])
    assert not rest[:, :3].any() and (rest[:, 3] == 1).all() and len(rest) == 4 * 5
    assert said[7][-1].text == "all sub-tasks are done; the hand is held still"


def test_another_round_of_sub_tasks_is_asked_for_where_it_may():
    writer = Scripted()
    run(text_policy(writer, rounds=2), 16)
    assert writer.questions.count("subtasks") == 2 and writer.questions.count("actions") == 4


def test_a_bad_form_is_asked_again_with_another_key_and_counted():
    def answer(prompt):
        question, attempt = asked(prompt)[3:]
        return "I would rather not." if question in ("subtasks", "actions") and attempt == 0 else usual(prompt)

    writer = Scripted(answer)
    chunks, said = run(text_policy(writer), 1)
    assert writer.questions == ["subtasks"] * 2 + ["plan"] + ["actions"] * 2
    assert [bool(text.problem) for text in said[0]] == [True, False, False, True, False]
    assert said[0][0].text == "I would rather not." and "no list" in said[0][0].problem
    assert chunks[0][:, :3].any()


def test_where_no_answer_has_the_right_form_nothing_is_played():
    writer = Scripted(lambda prompt: "" if asked(prompt)[3] != "plan" else "right")
    chunks, said = run(text_policy(writer, attempts=2), 2)
    assert not np.concatenate(chunks)[:, :3].any() and (np.concatenate(chunks)[:, 3] == -1).all()
    notes = [text.text for text in flat(said) if text.question == "note"]
    assert notes[0] == "no list of sub-tasks; the task itself is the only one"
    assert notes[1:] == ["no action text; the hand is held still for a chunk"] * 2
    assert writer.questions == ["subtasks"] * 2 + (["plan"] + ["actions"] * 2) * 2
    assert flat(said)[3].subtask == "push the button"


def test_a_motion_that_would_take_for_ever_is_a_bad_form():
    long = "[" + ", ".join(["[0.5, 0.0, 0.0, 1.0]"] * 9) + "]"
    writer = Scripted(lambda prompt: long if asked(prompt)[3] == "actions" else usual(prompt))
    _, said = run(text_policy(writer), 1)
    assert "takes 450 control steps, more than 400" in said[0][2].problem


def test_without_a_plan_actions_are_asked_for_directly():
    writer = Scripted()
    run(text_policy(writer, codec="sentence", plan=False, hand=True), 1)
    assert writer.questions == ["subtasks"] + ["actions"] * 3  # the script speaks decimals
    text = writer.batches[1][0][0].turns[0].text
    assert text.startswith(ask("direct", "sentence", subtask="move right"))
    assert text.endswith("The hand is at 60 cm forward, 0 cm left, 20 cm up, gripper 1.")


def test_the_models_own_verdict_decides_and_tries_are_limited():
    verdicts = iter(["no", "maybe", "No.", "no"])

    def answer(prompt):
        return next(verdicts, "yes") if asked(prompt)[3] == "completion" else usual(prompt)

    writer = Scripted(answer)
    _, said = run(text_policy(writer, verifier="self", tries=3), 14)
    # the first sub-task is not done three times (once after `maybe` was asked again), the second one at once
    actions = [text.subtask for text in flat(said) if text.question == "actions"]
    assert actions == ["move right"] * 3 + ["push down"]
    notes = [text.text for text in flat(said) if text.question == "note"]
    assert notes == [
        "not done after 3 tries; the next sub-task begins",
        "all sub-tasks are done; the hand is held still",
    ]
    prompt = next(p for prompts, _, _ in writer.batches for p in prompts if asked(p)[3] == "completion")
    assert prompt.turns[0].text == ask("completion", subtask="move right") and prompt.turns[0].images == (0, 1)
    assert [image[0, 0, 0] for image in prompt.images] == [0, 5]  # of the first query of the cycle, and now


def test_the_simulators_verdict_is_another_phase_of_the_expert():
    policy = text_policy(Scripted(), verifier="simulator")
    assert policy.privileged == ("phase",)
    _, said = run(policy, 9, see=lambda number: seen(number, phase=float(number >= 7)))
    actions = [text.subtask for text in flat(said) if text.question == "actions"]
    assert actions == ["move right", "move right", "push down"]
    with pytest.raises(UserError, match="no privileged `phase`"):
        run(policy, 1)


def test_a_verifier_is_measured_against_the_simulator():
    policy = text_policy(Scripted(), verifier="self", measure_verifier=True)
    _, said = run(policy, 9, see=lambda number: seen(number, phase=float(number >= 7)))
    pairs = [(one.text, two.text) for one, two in pairwise(flat(said)) if one.question == "verdict"]
    # it says yes twice, and the first time the expert was still in its phase
    assert pairs == [("done: the model's own answer", "not done"), ("done: the model's own answer", "done")]
    row = SimpleNamespace(texts=[text._asdict() for text in flat(said)])
    assert results.verdicts_of([row]) == [(True, False), (True, True)]


@pytest.mark.slow
def test_the_endpoints_verdict_comes_of_the_papers_prompt(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "k")

    def script(request, number):
        if number == 0:
            return "It looks fine to me."
        success = "Next Subtask: push down" not in request["messages"][0]["content"][2]["text"]
        return f'```json\n{{"success": {str(success).lower()}, "confidence": "High", "reasoning": "seen"}}\n```'

    with chat_server(script) as server:
        vlm = VlmConfig(base_url=server.url, api_key_variable="TEST_KEY", attempts=2)
        policy = text_policy(Scripted(), verifier="endpoint", tries=2, vlm=vlm, cache=str(tmp_path / "cache"))
        _, said = run(policy, 13)
        asked_for = len(server.requests)
        verdicts = [text.text for text in flat(said) if text.question == "verdict"]
        assert verdicts == ["not done: seen", "not done: seen", "done: seen"]
        content = server.requests[0]["messages"][0]["content"]
        assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
        assert content[2]["text"].startswith("You are a precision-oriented robot inspector.")
        assert (
            "Next Subtask: (none, the task is complete then)"
            in server.requests[-1]["messages"][0]["content"][2]["text"]
        )
        run(policy, 13)
        assert len(server.requests) == asked_for  # what was paid for is not asked again


def test_an_episodes_words_do_not_depend_on_its_company():
    alone = [run(text_policy(Mangling(usual)), 12, episode) for episode in range(5)]
    policy, said, chunks = text_policy(Mangling(usual)), [[] for _ in range(5)], [[] for _ in range(5)]
    for episode in range(5):
        policy.open(EpisodeKey("t", episode, 0))
    for number in range(12):
        order = np.random.default_rng(number).permutation(5).tolist()
        keys = [NoiseKey(0, "t", episode, number) for episode in order]
        for episode, chunk, texts in zip(order, policy.infer([seen(number)] * 5, keys), policy.said(), strict=True):
            chunks[episode].append(chunk)
            said[episode].append(texts)
    for episode in range(5):
        assert said[episode] == alone[episode][1]
        assert all((one == two).all() for one, two in zip(chunks[episode], alone[episode][0], strict=True))


def test_questions_of_many_episodes_are_one_batch():
    writer = Scripted()
    policy = text_policy(writer)
    for episode in range(6):
        policy.open(EpisodeKey("t", episode, 0))
    policy.infer([seen()] * 6, [NoiseKey(0, "t", episode, 0) for episode in range(6)])
    assert [len(prompts) for prompts, _, _ in writer.batches] == [6, 6, 6]


@pytest.mark.parametrize(("codec", "verifier"), [("decimals", "self"), ("sentence", "self"), ("tokens", "none")])
def test_ten_thousand_mangled_answers_crash_no_rollout(codec, verifier):
    action = ActionText.open(ActionTextConfig(codec=codec, **SAWYER), EMBODIMENT)
    written = action.codec.encode(action_motion()).text

    def answer(prompt):
        return written if asked(prompt)[3] == "actions" else usual(prompt)

    writer = Mangling(answer, "".join(action.tokens[:3]))
    policy = text_policy(writer, codec, verifier=verifier, rounds=9, chunk=8)
    moved = episode = problems = 0
    while writer.answers < MANGLED:
        names = [EpisodeKey("t", episode + number, 0) for number in range(8)]
        episode += 8
        for name in names:
            policy.open(name)
        for number in range(20):
            keys = [NoiseKey(0, "t", name.episode, number) for name in names]
            for chunk, texts in zip(policy.infer([seen(number)] * 8, keys), policy.said(), strict=True):
                assert 1 <= len(chunk) <= 8 and chunk.dtype == np.float32 and np.abs(chunk).max() <= 1 + 1e-6
                moved += bool(chunk[:, :3].any())
                problems += sum(bool(text.problem) for text in texts)
                json.dumps([text._asdict() for text in texts], ensure_ascii=False).encode()  # a page can hold it
    assert problems > MANGLED / 10 and moved > 100


def action_motion():
    action = ActionText.open(ActionTextConfig(**SAWYER), EMBODIMENT)
    motion = action.read(ACTIONS).motion
    assert motion is not None
    return replace(motion, move_R3=np.round(motion.move_R3, 2))


def test_a_tiny_model_with_random_weights_acts_and_says_what_it_wrote():
    vlm, encoder = build_vlm("tiny_vlm", seed=0)
    short = SamplingConfig(max_tokens=4)
    policy = text_policy(
        VlmWriter(vlm.eval(), encoder), subtasks=short, plans=short, actions=short, attempts=2, verifier="self"
    )

    def see(number):
        return replace(seen(number), views={"corner4": np.zeros((112, 112, 3), np.uint8)})

    chunks, said = run(policy, 2, see=see)
    assert not np.concatenate(chunks)[:, :3].any()  # random weights write no list
    assert [text.question for text in said[0]][:2] == ["subtasks"] * 2
    assert run(policy, 2, see=see)[1] == said


@pytest.mark.parametrize("codec", CODECS)
def test_a_models_tokenizer_loses_no_action_and_no_sub_task(codec):
    """Tokenizers lower-case, and part and join letters: what a model writes must be readable after all of it."""
    draws = np.random.default_rng(0)
    clips = [
        (np.ones((40, 4), np.float32), np.cumsum(draws.uniform(-0.2, 0.2, (40, 4)), 0).clip(-1, 1).astype(np.float32))
        for _ in range(9)
    ]
    action = ActionText.fitted(ActionTextConfig(codec=codec, **SAWYER), EMBODIMENT, clips, vocabulary=200)
    encoder = with_tokens(build_vlm("tiny_vlm", seed=0)[1], action.tokens)

    def through(text):
        return encoder.decode(encoder.tokenizer.encode(text, add_special_tokens=False))

    for states, actions in clips:
        text = action.write(states, actions).text
        expected, read = action.read(text).motion, action.read(through(text))
        assert read.motion is not None and read.motion.equals(expected), read.reason
    assert read_subtasks(through("['move up', \"don't stop\"]")).value == ["move up", "don't stop"]


def test_a_prompt_that_is_refused_because_of_what_was_written_is_asked_again():
    def answer(prompt):
        question, attempt = asked(prompt)[3:]
        refused = question == "actions" and attempt == 0
        return WriterAnswer("", "1,030 tokens, the model takes 1,024.") if refused else usual(prompt)

    chunks, said = run(text_policy(Scripted(answer)), 1)
    assert said[0][2].problem.startswith("1,030 tokens") and chunks[0][:, :3].any()
    with pytest.raises(UserError, match="no image slots"):  # of nothing that was written: the settings are wrong
        run(text_policy(Scripted(lambda prompt: WriterAnswer("", "no image slots"))), 1)


def test_refused_queries_leave_the_episode_as_it_was():
    writer = Scripted()
    policy = text_policy(writer)
    policy.open(EpisodeKey("t", 0, 0))
    key = NoiseKey(0, "t", 0, 0)
    for observations, keys, reason in (
        ([replace(seen(), views={})], [key], "corner4"),
        ([replace(seen(), state=np.zeros(3, np.float32))], [key], "has 4 dims"),
        ([seen(), seen()], [key, key], "two queries of one episode"),
        ([seen()], [NoiseKey(0, "t", 1, 0)], "is not open"),
        ([seen()], [NoiseKey(0, "t", 0, 1)], "number the queries, and give clients"),
    ):
        with pytest.raises(UserError, match=reason):
            policy.infer(observations, keys)
    assert not writer.batches
    assert len(policy.infer([seen()], [key])) == 1


def test_the_safety_filter_stops_what_is_stopped_already():
    space = ActionText.open(ActionTextConfig(**SAWYER), EMBODIMENT).space
    down = np.tile(np.array([0, 1, -1, 1], np.float32), (4, 1))  # forward and down 4 cm each
    before = np.array([0, 0.6, 0.1, 1], np.float32)
    assert filtered(space, down, before, None)[1] == 0
    free = before + np.array([0, 0.04, -0.04, 0], np.float32)
    assert filtered(space, down, free, (down, before))[1] == 0
    stopped = before + np.array([0, 0.04, -0.002, 0], np.float32)
    commands, changed = filtered(space, down, stopped, (down, before))
    assert changed == 4
    np.testing.assert_allclose(commands, down * [1, 1, 0, 1], atol=1e-6)
    back = -down  # away from what is touched: never filtered
    assert filtered(space, back, stopped, (down, before))[1] == 0
    policy = text_policy(Scripted(), safety_filter=True, chunk=8)
    _, said = run(policy, 4)  # the hand of the test never moves
    assert any("safety filter changed" in text.text for text in flat(said))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['Move Down', \"Grasp the cup's rim\"]", ["Move Down", "Grasp the cup's rim"]),
        ("Sure!\n['a',\n 'b',]\nDone.", ["a", "b"]),
        (r"['it\'s', 'b']", ["it's", "b"]),
        ("[]", None),
        ("['a', 5]", None),
        ("['']", None),
        ("['a'", None),
        ("['" + "x" * 301 + "']", None),
        ("[" + "'a', " * 31 + "]", None),
        ("[" * 9000, None),
    ],
)
def test_lists_of_sub_tasks_are_read(text, value):
    read = read_subtasks(text)
    assert read.value == value and (value is None) == bool(read.reason)


def test_plans_and_verdicts_are_read():
    assert read_plan("  left\n and up ").value == "left and up"
    assert read_plan(" \n").reason and read_plan("x" * 2001).reason
    assert read_completion("Yes.").value is True and read_completion(" no ").value is False
    assert read_completion("yes and no").value is None


def test_settings_are_a_file_and_are_checked(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("schema: text_policy\nviews: [corner4]\nverifier: self\nsubtasks: {temperature: 1.0}\n")
    config = load(path)
    assert isinstance(config, TextPolicyConfig) and config.subtasks.temperature == 1.0 and config.top_p == 0.95
    for change, reason in (
        ("views=[]", "`views` is empty"),
        ("verifier=truth", "`truth` is not one of none, endpoint"),
        ("plans.temperature=-1", r"plans\.temperature is -1"),
        ("chunk=0", "chunk is 0"),
        ("verifier=endpoint", "needs vlm.base_url"),
    ):
        with pytest.raises(UserError, match=reason):
            load(path, [change])
