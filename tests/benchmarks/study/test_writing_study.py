"""Why: the study that asks VLM2VLA's question runs for hours, and its last job must read what its first one wrote. So a
miniature of it runs whole, with real demonstrations, trainings and rollouts, and its tables say what the rows say."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.results import protocols
from benchmarks.study import config as study_config
from benchmarks.study import hours, plan, rows, run, writing_tables
from benchmarks.study.jobs import everything
from la4vla import config
from la4vla.types import UserError
from tests.train.launch import Rank

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "configs/study/vlm2vla.yaml"
EIGHT = [
    *("lora_decimals", "lora_sentence", "lora_tokens", "lora_direct", "whole_decimals"),
    *("whole_flow", "flow_scene", "flow_scene_insulated"),
]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_shipped_study_asks_what_the_paper_claims():
    study = study_config.load(STUDY)
    assert list(study.conditions) == EIGHT
    names = {job.name for job in plan.expand(study)}
    for condition in EIGHT:
        for seed in range(3):
            assert {f"{kind}/{condition}/{seed}" for kind in ("evaluate", "retention", "answers")} <= names
    assert "ceiling/robot" in names
    recipes = {
        job.about["arm"]: job.about
        for job in everything(plan.expand(study))
        if "recipe" in job.about and "arm" in job.about
    }
    loaded = {name: config.load(about["recipe"], about["settings"]) for name, about in recipes.items()}
    for name, recipe in loaded.items():
        (stage,) = recipe.stages.values()
        assert (recipe.learner == "vlm") is (study.conditions[name].acts != "")
        assert (stage.train == ["lora"]) is name.startswith("lora")
        assert stage.insulate is (name == "flow_scene_insulated")
        assert (stage.mixture.get("scene", 0.0) > 0) is name.startswith("flow_scene")
    assert "language_head" not in loaded["whole_flow"].stages["robot"].train
    assert {job.name for job in everything(plan.expand(study)) if job.name.startswith("pretrain/")} == {
        "pretrain/scenes/0"
    }, "one model that all seeds start from"
    claimed = {name for claim in writing_tables.CLAIMS for name in (claim.better, claim.worse)}
    assert claimed <= set(EIGHT)


def test_it_fits_into_four_hours_in_parts_of_two():
    study = study_config.load(STUDY)
    parts = hours.by_part(study, rows.StudyRows(Path("nowhere")))
    assert sum(part.left for part in parts) < 4.0 and all(part.left < 2.0 for part in parts)


def test_acts_and_texts_are_part_of_a_jobs_digest(tmp_path):
    study = study_config.load(STUDY)
    other = tmp_path / "acts.yaml"
    other.write_text(Path("configs/study/vlm2vla_acts.yaml").read_text().replace("rounds: 2", "rounds: 3"))
    changed = study_config.load(STUDY, [f"conditions.lora_decimals.acts={other}"])

    def digests(study):
        return {job.name: job.of for job in everything(plan.expand(study, ["seed_0"]))}

    before, after = digests(study), digests(changed)
    assert {name for name in before if before[name] != after[name]} == {"evaluate/lora_decimals/0"}
    retold = study_config.load(STUDY, ["texts.sentence.changes=[texts.codec.codec=sentence]"])
    assert {name for name, of in digests(retold).items() if before[name] != of} == {
        *(f"{kind}/lora_sentence/0" for kind in ("finetune", "evaluate", "retention", "answers")),
        "texts/sentence",
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("scenes=none", "scenes: `none` is not one of"),
        ("conditions.lora_decimals.texts=none", "conditions.lora_decimals.texts: `none`"),
        ("conditions.lora_decimals.pretraining=''", "so nothing of it can be kept"),
        ("texts.direct.data=none", "texts.direct.data: `none`"),
    ],
)
def test_a_slip_is_named(override, words):
    with pytest.raises(UserError) as caught:
        study_config.load(STUDY, [override])
    assert words in str(caught.value)


# The miniature: one task, eight demonstrations, four steps of training.

SMALL = ("lora_sentence", "whole_flow")


@pytest.fixture
def miniature(tmp_path):
    data = tmp_path / "data"
    construct = tmp_path / "construct.yaml"
    construct.write_text(
        f"base: {ROOT}/configs/study/construct_vlm2vla.yaml\nout_dir: {data}\nread: {{path: {tmp_path}/episodes}}\n"
        "record: {tasks: [window-open-v3], episodes: 8, image_size: 64, fast: true}\nshards: 4\n"
        "texts: {every: 0, scenes: 2, held_out_scenes: 0.4}\n"
    )
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "base: metaworld/vlm2vla-v1\nepisodes: 2\nhorizon: 24\nfast: true\nimage_size: 64\n"
        "groups: {easy: [window-open-v3]}\n"
    )
    acts = tmp_path / "acts.yaml"
    short = "{max_tokens: 8}"
    acts.write_text(
        f"schema: text_policy\nviews: [corner4]\nhand: true\nattempts: 1\n"
        f"subtasks: {short}\nplans: {short}\nactions: {short}\n"
    )

    def short_run(stage, batch, *changes):
        sizes = {"steps": 4, "global_batch": batch, "micro_batch": 4, "warmup_steps": 1}
        return f"[{','.join([*changes, *(f'stages.{stage}.{name}={value}' for name, value in sizes.items())])}]"

    def read(**paths):
        return [f"data.sources.{name}.path={data}/{path}" for name, path in paths.items()]

    clips = read(vla="vla", task="task", scene="pretexts")
    overrides = [
        f"out={tmp_path}/runs",
        f"rows={tmp_path}/rows",
        f"protocol={rules}",
        f"construct.robot={construct}",
        "processes=1",
        "changes=[data.streams=4,checkpoint.every_steps=4]",
        f"pretrainings.scenes.changes={short_run('pretrain', 4, *read(texts='pretexts'))}",
        f"conditions.lora_sentence.acts={acts}",
        f"conditions.lora_sentence.changes={short_run('pretrain', 4, *read(texts='sentence'))}",
        f"conditions.whole_flow.changes={short_run('robot', 8, *clips)}",
        "parts.data.texts=[]",
        *(f"parts.seed_{seed}.conditions=[{','.join(SMALL) if seed == 0 else ''}]" for seed in range(3)),
    ]
    return study_config.load(STUDY, overrides)


class Command(Rank):
    """A job's command, forked from a process that has imported the libraries."""

    def __init__(self, command, env, pass_fds):
        super().__init__(command[1:], env)

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        assert self.poll() == 0, self.output()
        return self.poll()

    terminate = Rank.kill


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.thorough
def test_a_miniature_runs_from_demonstrations_to_tables(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(Popen=Command, TimeoutExpired=subprocess.TimeoutExpired))
    run.run(miniature, [], hours=1.0)
    written = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "rows").glob("*.jsonl")
    }
    assert {kind: len(lines) for kind, lines in written.items()} == {
        "construct": 1, "texts": 3, "ceiling": 1, "train": 3, "evaluate": 2, "retention": 2, "answers": 2,
    }  # fmt: skip
    lora = next(row for row in written["retention"] if row["arm"] == "lora_sentence")
    assert len(lora["outcomes"]["after"]["sees"]) == lora["n"] and set(lora["outcomes"]["after"]) == {
        "sees",
        "blind",
        "writes",
    }
    flow = next(row for row in written["retention"] if row["arm"] == "whole_flow")
    assert set(flow["outcomes"]["after"]) == {"sees", "blind"} and flow["n"] == lora["n"]
    assert set(next(row for row in written["answers"] if row["arm"] == "whole_flow")["rates"]) == {"main"}
    assert all("decision_s" in row for row in written["evaluate"])
    text = "\n".join(
        writing_tables.lines(miniature, rows.StudyRows(tmp_path / "rows").newest(everything(plan.expand(miniature))))
    )
    assert text.index("otherwise than in the paper") < text.index("## Acting and keeping")
    assert "| ceiling (decimals, commanded) |" in text and "| before | 1 |" in text
    for condition in SMALL:
        assert f"| {condition} | 1 |" in text
    run.run(miniature, [], hours=0.0)  # every job has its row, so nothing is left to start


def test_claims_are_judged_by_intervals():
    study = study_config.load(STUDY)

    def kept(arm, right):
        sees = {"right": right.count("1"), "n": len(right), "value": 0.5, "low": 0.4, "high": 0.6}
        rate = {name: {"sees": sees, "blind": sees} for name in ("all", "scene_colour")}
        return {
            "job": f"retention/{arm}/0", "arm": arm, "seed": 0, "n": len(right), "change": {"all": {"kept": 0.5}},
            "chance": {"all": 0.5, "scene_colour": 0.5}, "rates": {"before": rate, "after": rate},
            "outcomes": {"after": {"sees": right}},
        }  # fmt: skip

    made = [kept("lora_decimals", "1" * 40), kept("whole_decimals", "0" * 40), kept("whole_flow", "1" * 40)]
    made += [kept("lora_tokens", "1" * 40), kept("flow_scene", "1" * 39 + "0")]
    text = "\n".join(writing_tables.lines(study, made))
    against, met, rest = (text.partition(head)[2] for head in ("than in the paper", "As in the paper:", "Open, since"))
    assert "LoRA keeps more than training the whole model" in met.partition("Open, since")[0]
    assert "Nothing that the rows so far decide." in against.partition("As in the paper:")[0]
    assert "Words keep more than rare tokens" in rest and "A plan acts better than none (NR): no rows yet." in rest
    made[0], made[1] = kept("lora_decimals", "0" * 40), kept("whole_decimals", "1" * 40)
    text = "\n".join(writing_tables.lines(study, made))
    assert "LoRA keeps more" in text.partition("As in the paper:")[0]


def test_the_protocol_is_the_quickstarts_with_fewer_states():
    one, other = (protocols.load(f"metaworld/{name}-v1") for name in ("vlm2vla", "quickstart"))
    assert one.tasks == other.tasks and one.episodes == 10 and one.horizon == other.horizon
