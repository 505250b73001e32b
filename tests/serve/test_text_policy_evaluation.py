"""Why: a model that writes is served and evaluated by the same commands as any checkpoint. Through the real simulator,
runner and websocket its texts must move the robot as the demonstrations they were made from did, and stand beside every
episode; and a client that cannot tell what its verifier needs must be refused."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.report import report
from benchmarks.results import protocols, results
from benchmarks.rollouts import evaluate
from benchmarks.rollouts.evaluate import EvaluationRequest, ServerAddress
from la4vla.action_text.action_text import ActionText
from la4vla.action_text.config import ActionTextConfig
from la4vla.config import TextPolicyConfig, load
from la4vla.construct import __main__ as construct
from la4vla.construct.ledger import Ledger
from la4vla.construct.readers import open_dataset
from la4vla.construct.steps import KEPT
from la4vla.serve.client import RemotePolicy
from la4vla.serve.policy_like import EpisodeKey, NoiseKey
from la4vla.serve.text.load import load_text_policy
from la4vla.serve.text.policy import TextPolicy
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.sim.registry import SIMULATORS
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_vlm_checkpoint
from tests.serve.serving import serving
from tests.serve.text_writers import Scripted, asked, usual

TASKS = ["plate-slide-v3", "window-open-v3"]
SAWYER = {"forward": "+y", "left": "-x", "up": "+z"}
RULES = ["groups={easy: [plate-slide-v3, window-open-v3]}", "first_episode=1000", "episodes=2", "image_size=32"]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """(task, episode) -> (sub-task, action text) of each clip of a recorded demonstration."""
    folder = tmp_path_factory.mktemp("texts")
    path = folder / "construct.yaml"
    path.write_text(
        f"schema: construct\nout_dir: {folder}\nread: {{path: {folder}/episodes}}\npropose: {{min_clip_frames: 8}}\n"
        f"record: {{tasks: [{', '.join(TASKS)}], episodes: 2, image_size: 32, frame_stride: 3, fast: true}}\n"
    )
    assert construct.main(["filter", str(path)]) == 0
    config = load(path)
    dataset, action = open_dataset(config), ActionText.open(ActionTextConfig(**SAWYER), EMBODIMENT)
    kept = {row["key"]: row["kept"] for row in Ledger(folder / KEPT)}
    texts = {}
    for key in dataset.keys:
        episode = dataset.read(key)
        spans = [(item["start"], item["end"], item["instruction"]) for item in kept[key]]
        texts[(episode.task, episode.number)] = [
            (f"{number}: {label}", action.write(episode.state[start : end + 1], episode.action[start:end]).text)
            for number, (start, end, label) in enumerate(spans)
        ]
    return texts


def told(annotated):
    """A writer that knows the demonstration of every episode."""

    def answer(prompt):
        task, episode, _, question, _ = asked(prompt)
        clips = annotated[(task, episode)]
        if question == "subtasks":
            return str([label for label, _ in clips])
        if question == "actions":
            return next(text for label, text in clips if f"'{label}'" in prompt.turns[0].text)
        return usual(prompt)

    return Scripted(answer)


def text_policy(writer, **settings):
    action = ActionText.open(ActionTextConfig(**SAWYER), EMBODIMENT)
    config = TextPolicyConfig(**{"views": ["corner4"], "chunk": 8, **settings})
    return TextPolicy.of(config, writer, action, "a text policy", 0, {})


def request_(url, out, **changes):
    base = EvaluationRequest(
        simulator=SIMULATORS["metaworld"], protocol=protocols.load("metaworld/quickstart-v1", RULES), checkpoint=None,
        untrained=False, out=out, workers=2, tasks=(), episodes=None, videos=1, device="", command="", variants=(),
        server=ServerAddress(url, ""),
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.sim
@pytest.mark.slow
def test_written_demonstrations_succeed_over_the_wire_and_can_be_read(annotated, tmp_path):
    with serving(text_policy(told(annotated), verifier="self")) as (url, _):
        evaluate.evaluate(request_(url, tmp_path / "eval"))
    rows = {(row.task, row.episode): row for row in results.read_rows(tmp_path / "eval")}
    assert rows.keys() == annotated.keys()
    assert sum(bool(row.success) for row in rows.values()) >= 3, "the ceiling is 4 of 4 (test_ceiling.py)"
    for key, row in rows.items():
        written = [text["text"] for text in row.texts if text["question"] == "actions"]
        assert written and written == [text for _, text in annotated[key]][: len(written)]
        assert row.texts[0]["question"] == "subtasks" and {text["query"] for text in row.texts} <= set(
            range(row.queries)
        )
    summary = results.summarise(rows.values(), protocols.load("metaworld/quickstart-v1", RULES))
    assert "0 badly formed (0.0 %)" in summary.texts
    cycles = sum(text["question"] == "actions" for row in rows.values() for text in row.texts)
    assert f"{cycles} decisions, seconds: median" in summary.texts
    assert len(results.decision_seconds(rows.values())) == cycles
    page = report.write([tmp_path / "eval"], tmp_path / "report.html").read_text()
    assert "what it wrote" in page and "Primarily right (-dy)." in page


@pytest.mark.sim
@pytest.mark.slow
def test_the_runner_tells_what_the_simulators_verifier_needs(annotated, tmp_path):
    policy = text_policy(told(annotated), verifier="simulator", tries=2)
    with serving(policy) as (url, _):
        evaluate.evaluate(request_(url, tmp_path, episodes=1, videos=0))
        verdicts = [
            text["text"] for row in results.read_rows(tmp_path) for text in row.texts if text["question"] == "verdict"
        ]
        assert verdicts and all("the expert's phase was" in text for text in verdicts)
        with RemotePolicy(url) as remote:
            assert remote.privileged == ("phase",) and remote.counts_on == remote.horizon == 8
            seen = Observation({"corner4": np.zeros((32, 32, 3), np.uint8)}, np.zeros(4, np.float32), "push")
            with pytest.raises(UserError, match="phase"):
                remote.infer([seen], [NoiseKey(0, "plate-slide-v3", 1000, 0)])
    with pytest.raises(UserError, match="its clients do not send phase"), serving(policy, dialect="openpi"):
        pass


def test_the_wire_changes_nothing():
    def seen(step):
        return Observation({"corner4": np.full((16, 16, 3), step, np.uint8)}, np.ones(4, np.float32), "push")

    keys = [NoiseKey(5, "t", 3, query) for query in range(8)]
    policy = text_policy(Scripted(), verifier="self")
    policy.open(EpisodeKey("t", 3, 5))
    here = [(policy.infer([seen(key.query)], [key])[0], policy.said()) for key in keys]
    with serving(text_policy(Scripted(), verifier="self")) as (url, _), RemotePolicy(url) as remote:
        assert remote.contract["state_min"] == [] and remote.contract["counts_on"] == 8
        for key, (chunk, said) in zip(keys, here, strict=True):
            np.testing.assert_array_equal(remote.infer([seen(key.query)], [key])[0], chunk)
            assert remote.said() == said
        with pytest.raises(UserError, match="is the next; number the queries"):
            remote.infer([seen(0)], [NoiseKey(5, "t", 3, 3)])


def test_more_steps_than_a_protocol_executes_are_refused():
    rules = protocols.load("metaworld/quickstart-v1", [*RULES, "replan_every=4"])
    with pytest.raises(UserError, match=r"8 steps that must all be executed.*executes 4; set chunk: 4"):
        evaluate.check_executed(text_policy(Scripted()), rules)


@pytest.mark.sim
@pytest.mark.slow
def test_a_checkpoint_that_writes_is_evaluated_by_the_usual_command(tmp_path, capsys):
    codec = ActionText.open(ActionTextConfig(**SAWYER), EMBODIMENT).to_dict()
    folder = write_vlm_checkpoint(tmp_path / "run", EMBODIMENT, codec)
    settings = tmp_path / "acts.yaml"
    short = "{max_tokens: 3}"
    settings.write_text(
        f"schema: text_policy\nviews: [corner4]\nattempts: 1\nsubtasks: {short}\nplans: {short}\nactions: {short}\n"
    )
    words = ["metaworld", "--checkpoint", str(folder), "--protocol", "metaworld/quickstart-v1", "--episodes", "1"]
    words += [
        "--tasks",
        "window-open-v3",
        "--out",
        str(tmp_path / "eval"),
        "--device",
        "cpu",
        "horizon=16",
        "fast=true",
    ]
    assert command.main([*words, "--text", str(settings)]) == 0
    (row,) = results.read_rows(tmp_path / "eval")
    assert row.success is False and row.queries == 2
    assert [text["question"] for text in row.texts][:2] == ["subtasks", "note"]
    assert "badly formed" in capsys.readouterr().out
    config = load(settings)
    other = load_text_policy(folder, replace(config, plan=False)).identity
    assert row.policy == load_text_policy(folder, config).identity != other  # other settings are another policy
    with pytest.raises(UserError, match="say how it acts with --text FILE"):
        command.main([*words[:-2], "--out", str(tmp_path / "other")])
    with pytest.raises(UserError, match="trained on no action texts"):
        load_text_policy(write_vlm_checkpoint(tmp_path / "blank", EMBODIMENT, {}), config)


def test_settings_of_a_policy_that_writes_are_for_one_that_does():
    with pytest.raises(UserError, match="--text, --high, --base and --weights are for a trained --checkpoint"):
        command.main(["metaworld", "--expert", "--protocol", "metaworld/quickstart-v1", "--out", "x", "--text", "y"])
