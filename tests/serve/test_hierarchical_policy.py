"""Why: a hierarchical policy is two checkpoints that must agree: the low-level policy must be told in the words and the
form that it was trained with, at the right moments, and what was written must stand beside the episode. A pair that
does not fit moves a robot by sentences it never learned, and nothing shows it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from la4vla.config import HierarchicalConfig, load
from la4vla.levels import told
from la4vla.questions import wordings
from la4vla.questions.wordings import ask
from la4vla.serve.client import RemotePolicy
from la4vla.serve.hierarchical.instructors import WrittenInstructions
from la4vla.serve.hierarchical.load import load_hierarchical
from la4vla.serve.hierarchical.policy import HierarchicalPolicy
from la4vla.serve.load import load_served
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import EpisodeKey, NoiseKey, open_episodes
from la4vla.serve.text.writer import WriterAnswer
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_checkpoint, write_vlm_checkpoint
from tests.serve.serving import ARM, random_image, recording, serving
from tests.serve.text_writers import Scripted, asked

torch.set_num_threads(1)
TASK = "push the button"
CONFIG = HierarchicalConfig(high="high", question="next", views=["topview"])


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """A policy of task and instruction, which sees corner4."""
    return write_checkpoint(tmp_path_factory.mktemp("low") / "low", EMBODIMENT, ("corner4",), levels="both")


@pytest.fixture(scope="module")
def high(tmp_path_factory):
    return write_vlm_checkpoint(tmp_path_factory.mktemp("high") / "high", EMBODIMENT, {}, questions=("next",))


def seen(number=0, task=TASK, **changes):
    views = {name: random_image(number, 112) for name in ("corner4", "topview")}
    return replace(Observation(views, np.array([0.0, 0.6, 0.2, 1.0], np.float32), task), **changes)


def policy_of(low, answer=None, **settings):
    """(the policy, what its low-level policy will have been asked, its writer); it writes `step QUERY`."""
    writer = Scripted(answer or (lambda prompt: f"step {asked(prompt)[2]}"))
    config = replace(CONFIG, **settings)
    acting, told_to = recording(ServedPolicy.load(low))
    return (
        HierarchicalPolicy(
            acting, WrittenInstructions(writer, config.question, config), "both", config.replan, "h", {}
        ),
        told_to,
        writer,
    )


def run(policy, observations, episode=0):
    """Chunks and texts of the first queries of an episode."""
    policy.open(EpisodeKey("t", episode, 0))
    chunks, said = [], []
    for number, observation in enumerate(observations):
        chunks += policy.infer([observation], [NoiseKey(0, "t", episode, number)])
        said += policy.said()
    return chunks, said


def test_an_instruction_holds_for_so_many_chunks_and_reaches_the_policy_as_in_training(low):
    policy, told_to, writer = policy_of(low, replan=2)
    chunks, said = run(policy, [seen(number) for number in range(5)])
    assert [observation.instruction for observation in told_to] == [
        told("both", TASK, f"step {number}") for number in (0, 0, 2, 2, 4)
    ]
    assert [[(text.question, text.subtask, text.text) for text in texts] for texts in said] == [
        [("next", "", "step 0")], [], [("next", "step 0", "step 2")], [], [("next", "step 2", "step 4")],
    ]  # fmt: skip
    prompt = writer.batches[1][0][0]
    assert prompt.turns[0].text == ask("next", task=TASK) and prompt.turns[0].images == (0,)
    np.testing.assert_array_equal(prompt.images[0], seen(2).views["topview"])
    alone = ServedPolicy.load(low).infer([seen(3, told("both", TASK, "step 2"))], [NoiseKey(0, "t", 0, 3)])
    np.testing.assert_array_equal(chunks[3], alone[0])
    assert policy.views == ("corner4", "topview") and policy.trained == ServedPolicy.load(low).trained


def test_another_task_or_a_client_that_asks_gets_another_instruction(low):
    policy, told_to, _ = policy_of(low, replan=9)
    run(policy, [seen(), seen(1, replan=True), seen(2), seen(3, task="open the door"), seen(4, task="open the door")])
    assert [observation.instruction for observation in told_to] == [
        f"{TASK}: step 0", f"{TASK}: step 1", f"{TASK}: step 1", "open the door: step 3", "open the door: step 3",
    ]  # fmt: skip


def test_a_model_is_asked_as_it_was_trained(low):
    policy, _, writer = policy_of(low, question="next_system")
    _, said = run(policy, [seen()])
    (prompt,), *_ = writer.batches[0]
    assert prompt.turns == wordings.turns("next_system", (0,), task=TASK) and prompt.turns[0].role == "system"
    assert said[0][0].question == "next_system"


def test_without_an_instruction_the_last_one_or_the_task_alone_is_told_and_a_note_says_so(low):
    answers = {0: " ", 1: "move  left\n", 2: "x" * 301, 3: "\u4e00" * 299}
    policy, told_to, writer = policy_of(
        low, lambda prompt: answers[asked(prompt)[2]], attempts=2, next=replace(CONFIG.next, temperature=1.0)
    )
    _, said = run(policy, [seen(number) for number in range(4)])
    assert [observation.instruction for observation in told_to] == [TASK, *[f"{TASK}: move left"] * 3]
    assert [text.problem.partition(",")[0] for text in said[0]] == ["the instruction is empty"] * 2 + [""]
    assert said[0][-1].text == "no instruction; the policy is told the task alone"
    assert said[2][-1].text == "no instruction; `move left` stays at work"
    assert "tokens, the model takes" in said[3][0].problem  # the policy could not have been told it
    assert [asked(prompt)[3:] for prompts, *_ in writer.batches for prompt in prompts][:3] == [
        ("next", 0), ("next", 1), ("next", 0),
    ]  # fmt: skip


def test_an_episodes_texts_and_actions_do_not_depend_on_its_company(low, high):
    """A real model with random weights, drawing."""
    config = replace(CONFIG, high=str(high), next=replace(CONFIG.next, temperature=1.0, max_tokens=6))
    policy = load_hierarchical(low, config)
    alone = [run(policy, [seen(episode), seen(episode + 9)], episode) for episode in range(3)]
    texts = [said[number][0].text for _, said in alone for number in (0, 1)]
    assert len(set(texts)) > 3, texts
    for number in (0, 1):
        keys = [NoiseKey(0, "t", episode, number) for episode in (2, 0, 1)]
        open_episodes(policy, keys)
        chunks = policy.infer([seen(key.episode + 9 * number) for key in keys], keys)
        for key, chunk, said in zip(keys, chunks, policy.said(), strict=True):
            assert said == alone[key.episode][1][number]
            np.testing.assert_allclose(chunk, alone[key.episode][0][number], atol=1e-4)


def test_the_wire_changes_nothing_and_a_client_can_ask_for_another_instruction(low, high):
    config = replace(CONFIG, high=str(high), replan=9, next=replace(CONFIG.next, temperature=1.0, max_tokens=6))
    keys = [NoiseKey(5, "t", 3, query) for query in range(3)]
    queries = [seen(), seen(1), seen(2, replan=True)]
    policy = load_hierarchical(low, config)
    policy.open(EpisodeKey("t", 3, 5))
    here = [(policy.infer([query], [key])[0], policy.said()) for query, key in zip(queries, keys, strict=True)]
    assert [len(said[0]) for _, said in here] == [1, 0, 1]
    with serving(policy) as (url, _), RemotePolicy(url) as remote:
        assert remote.trained == policy.trained and remote.views == ("corner4", "topview")
        for query, key, (chunk, said) in zip(queries, keys, here, strict=True):
            np.testing.assert_array_equal(remote.infer([query], [key])[0], chunk)
            assert remote.said() == said


def test_true_instructions_come_from_the_simulator_or_nothing_moves(low):
    policy = load_hierarchical(low, HierarchicalConfig(instructor="oracle"))
    true = seen(privileged={"low_level": "move the gripper left"})
    policy.low, told_to = recording(policy.low)
    _, said = run(policy, [true, seen(1, privileged={"low_level": ""})])
    assert [observation.instruction for observation in told_to] == [f"{TASK}: move the gripper left"] * 2
    assert [text.question for text in said[0]] == ["oracle"] and said[1][-1].question == "note"
    with pytest.raises(UserError, match="no privileged `low_level`, which instructor=oracle needs"):
        policy.infer([seen()], [NoiseKey(0, "t", 0, 2)])
    with serving(policy) as (url, _), RemotePolicy(url) as remote:
        assert remote.privileged == ("low_level",)
        remote.infer([true], [NoiseKey(0, "t", 0, 0)])
        assert remote.said()[0][0].text == "move the gripper left"
        with pytest.raises(UserError, match="low_level"):
            remote.infer([seen()], [NoiseKey(0, "t", 0, 1)])
    with pytest.raises(UserError, match="its clients do not send low_level"), serving(policy, dialect="openpi"):
        pass


def test_refused_queries_leave_the_episode_as_it_was(low):
    policy, told_to, writer = policy_of(low)
    policy.open(EpisodeKey("t", 0, 0))
    key = NoiseKey(0, "t", 0, 0)
    for observations, keys, reason in (
        ([seen(views={"corner4": random_image(0)})], [key], "topview"),
        ([seen(state=np.zeros(3, np.float32))], [key], "has 4 dims"),
        ([seen(), seen()], [key, key], "two queries of one episode"),
        ([seen()], [NoiseKey(0, "t", 0, 1)], "number the queries, and give clients"),
    ):
        with pytest.raises(UserError, match=reason):
            policy.infer(observations, keys)
    assert not writer.batches and not told_to
    refusing, _, _ = policy_of(low, lambda prompt: WriterAnswer("", "no image slots"))
    with pytest.raises(UserError, match="no image slots"):
        run(refusing, [seen()])


def test_a_pair_that_does_not_fit_is_one_sentence(low, high, tmp_path):
    def refused(low, high, words):
        with pytest.raises(UserError, match=words):
            load_hierarchical(low, replace(CONFIG, high=str(high), question=""))

    never = write_vlm_checkpoint(tmp_path / "never", EMBODIMENT, {}, questions=("plan", "scene"))
    refused(low, never, r"never asked for the next instruction; train it on the texts of .* next or next_system among")
    both = write_vlm_checkpoint(tmp_path / "both", EMBODIMENT, {}, questions=("next", "next_system"))
    refused(low, both, "was asked next and next_system; say which with `question`")
    refused(low, write_vlm_checkpoint(tmp_path / "arm", ARM, {}, questions=("next",)), "another embodiment.*is arm")
    refused(low, low, "is a policy with actions; name a checkpoint of learner vlm")
    refused(high, high, "is a model that writes .*not a policy with actions")
    tasks = write_checkpoint(tmp_path / "tasks", EMBODIMENT, ("corner4",), instructions=())
    refused(tasks, high, "whole demonstrations by their tasks alone, so it knows no low-level instructions; train")
    (high_file := tmp_path / "high.yaml").write_text(f"schema: hierarchical\nhigh: {high}\nviews: [topview]\n")
    with pytest.raises(UserError, match="name it in the file of --high"):
        load_served(high, None, "cpu", high=high_file)
    other = load_hierarchical(low, replace(CONFIG, high=str(high), replan=2)).identity
    assert load_served(low, None, "cpu", high=high_file).identity not in (other, ServedPolicy.load(low).identity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("views: [a]", "`high` is empty; name the checkpoint that writes"),
        ("high: a", "`views` is empty; name the cameras"),
        ("instructor: oracle\nhigh: a", "instructor=oracle needs no model that writes"),
        ("instructor: orakel", "instructor: `orakel` is not one of vlm, oracle; the nearest is `oracle`"),
        ("high: a\nviews: [a]\nreplan: 0", r"replan is 0; it must be in \[1, inf\)"),
        ("high: a\nviews: [a]\nattempts: 3", "at next.temperature=0 every answer is the same"),
        ("high: a\nviews: [a]\nnext: {temperature: -1}", "next.temperature is -1"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path, settings, words):
    (tmp_path / "high.yaml").write_text(f"schema: hierarchical\n{settings}\n")
    with pytest.raises(UserError, match=words):
        load(tmp_path / "high.yaml")
