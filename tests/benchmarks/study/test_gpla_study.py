"""Why: the study that asks GPLA's question runs for hours, and its last job must read what its first one wrote. So a
miniature of it runs whole, on real episodes of LanguageTable, and its tables say what the rows say."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.study import config as study_config
from benchmarks.study import gpla_tables, hours, plan, rows, run, tables
from benchmarks.study.jobs import everything
from la4vla import config
from la4vla.types import UserError
from tests.benchmarks.study.test_writing_study import Command

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "configs/study/gpla.yaml"
TINY = ROOT / "tests/construct/readers/language_table"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_shipped_study_asks_what_it_says():
    study = study_config.load(STUDY)
    jobs = {job.name: job for job in everything(plan.expand(study))}
    for seed in range(3):
        assert {f"words/{arm}/{seed}" for arm in study.hierarchies} <= jobs.keys()
        acting = {arm for arm in study.hierarchies if f"evaluate/{arm}/{seed}" in jobs}
        assert acting == {"mw_oracle", "mw_flat", "mw_supervised", "mw_gpla"}
    claimed = {arm for claim in gpla_tables.ARM_CLAIMS for arm in (claim.better, claim.worse)}
    assert claimed <= set(study.hierarchies)
    shares = [config.load(study.construct[name]).read.max_episodes for name in ("lt", "lt_30", "lt_10")]
    assert shares == [39, 12, 4] and config.load(study.construct["lt_held_out"]).read.skip_episodes == 39
    for path in study.construct.values():
        made = config.load(path)
        recorded = len(made.record.tasks) * made.record.episodes
        assert made.shards <= (recorded if made.read.format == "recorded" else made.read.max_episodes or 10)
    for name, rounds in study.rounds.items():
        job = jobs[f"gpla/{name}/0"]
        settings = config.load(rounds.config, job.about["settings"])
        assert settings.scorer.startswith(study.out) and not settings.ground.config
        assert (settings.prefer.objective == "preference") is (name != "lt_supervised")
    held_out, learned = (config.load(study.construct[name]).record for name in ("mw_held_out", "mw"))
    assert held_out.first_episode >= learned.first_episode + 10 * learned.episodes


def test_it_fits_into_four_hours_in_parts_of_two():
    parts = hours.by_part(study_config.load(STUDY), rows.StudyRows(Path("nowhere")))
    assert sum(part.left for part in parts) < 4.0 and all(part.left < 2.0 for part in parts)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hierarchies.lt_gpla.high=none", "hierarchies.lt_gpla: `none` is not one of"),
        ("hierarchies.lt_gpla.told=flat", "set `high`, the model that writes, or `told`"),
        ("hierarchies.lt_gpla.views=[]", "views is empty; name the cameras"),
        ("rounds.lt.ground=none", "rounds.lt: `none`"),
        ("judges.mw.data=none", "judges.mw.data: `none`"),
    ],
)
def test_a_slip_is_named(override, words):
    with pytest.raises(UserError) as caught:
        study_config.load(STUDY, [override])
    assert words in str(caught.value)


def test_rounds_follow_their_models_and_words_their_rounds():
    def digests(*overrides):
        study = study_config.load(STUDY, overrides)
        return {job.name: job.of for job in everything(plan.expand(study, ["seed_0"]))}

    before, after = digests(), digests("rounds.lt_10.changes=[candidates.count=5]")
    assert {name for name in before if before[name] != after[name]} == {"gpla/lt_10/0", "words/lt_gpla_10/0"}
    longer = digests(
        "pretrainings.mw_high.changes=[data.sources.next.path=data/study/gpla/metaworld/next_mw,stages.high.steps=9]"
    )
    changed = {name for name in before if before[name] != longer[name]}
    writers = {"pretrain/mw_high/0", "gpla/mw/0"}
    assert changed == writers | {
        f"{kind}/{arm}/0" for kind in ("words", "evaluate") for arm in ("mw_supervised", "mw_gpla")
    }


def word_row(arm, seed, **values):
    """values: column -> its value in each of five episodes."""
    sums = {name: {f"e{number}": [value, 1] for number, value in enumerate(given)} for name, given in values.items()}
    said = [{"task": "t", "instruction": "push the star", "said": "push the moon"}]
    return {"job": f"words/{arm}/{seed}", "arm": arm, "seed": seed, "missing": {}, "sums": sums, "said": said}


def test_claims_are_judged_by_intervals():
    high, low = [0.5, 0.51, 0.52, 0.5, 0.5], [0.1, 0.12, 0.11, 0.1, 0.1]
    made = [word_row("lt_supervised", 0, BLEU=high, **{"ROUGE-1": low, "MSE (normalised)": high})]
    made += [word_row("lt_gpla", 0, BLEU=low, **{"ROUGE-1": high, "MSE (normalised)": low})]
    made += [word_row("lt_oracle", 0, **{"MSE (normalised)": [0.5, 0.4, 0.6, 0.5, 0.5]})]
    met, against, undecided = gpla_tables.judged(made)
    assert any("BLEU" in line for line in met) and any("err less" in line for line in met)
    assert [line.partition(" (")[0] for line in against] == ["GPLA loses words that overlap"]
    assert any("people's words" in line.lower() and "no rows" not in line for line in undecided)
    assert sum("no rows yet" in line for line in undecided) > 5


@pytest.fixture
def miniature(tmp_path):
    """Three episodes of LanguageTable: two to learn from, one held out."""
    data, texts = (
        tmp_path / "lt",
        "{questions: [next_system], next_every: 8, held_out_scenes: 0.0, held_out_wordings: 0.0}",
    )
    source = f"path: {TINY}/language_table/0.0.1, captions: {TINY}/captions.json"
    for name, part in (("lt", "max_episodes: 2"), ("lt_held_out", "skip_episodes: 2")):
        (tmp_path / f"{name}.yaml").write_text(
            f"base: {ROOT}/configs/construct/language_table.yaml\nout_dir: {tmp_path}/{name}\nshards: 1\n"
            f"read: {{{source}, {part}}}\ntexts: {texts}\n"
        )

    def short(stage, *changes):
        sizes = {"steps": 2, "global_batch": 2, "micro_batch": 2, "warmup_steps": 1}
        return f"[{','.join([*changes, *(f'stages.{stage}.{name}={value}' for name, value in sizes.items())])}]"

    clips = [f"data.sources.{name}.path={data}/{name}" for name in ("vla", "task")]
    pairs = [f"data.sources.clips.path={data}/vla", "data.contrast_group=2"]
    rounds = [f"candidates.clips={data}/vla", "candidates.count=2", "candidates.max_tokens=4", "processes=1"]
    rounds += ["prefer.rounds=2", "prefer.global_batch=2", "prefer.micro_batch=2"]
    return study_config.load(
        STUDY,
        [
            f"out={tmp_path}/runs",
            f"rows={tmp_path}/rows",
            f"construct.lt={tmp_path}/lt.yaml",
            f"construct.lt_held_out={tmp_path}/lt_held_out.yaml",
            "processes=1",
            "changes=[data.streams=1,checkpoint.every_steps=2]",
            f"pretrainings.lt_low.changes={short('low', *clips)}",
            f"pretrainings.lt_high.changes={short('high', f'data.sources.next.path={data}/next')}",
            f"pretrainings.lt_ground.changes={short('ground', *pairs)}",
            f"rounds.lt.changes=[{','.join(rounds)}]",
            "parts.data={construct: [], texts: []}",
            "parts.seed_0={hierarchies: [lt_oracle, lt_gpla], judges: [lt], seeds: [0]}",
            *(f"parts.seed_{seed}={{hierarchies: [], judges: [], seeds: []}}" for seed in (1, 2)),
        ],
    )


@pytest.mark.slow
def test_a_miniature_runs_from_episodes_to_tables(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(Popen=Command, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setattr(run, "TICK_S", 0.5)
    run.run(miniature, [], hours=1.0)
    written = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "rows").glob("*.jsonl")
    }
    assert {kind: len(found) for kind, found in written.items()} == {
        "construct": 2, "texts": 1, "train": 3, "gpla": 1, "words": 2, "judges": 1,
    }  # fmt: skip
    oracle, gpla = (next(row for row in written["words"] if row["arm"] == arm) for arm in ("lt_oracle", "lt_gpla"))
    assert "BLEU" in gpla["sums"] and "BLEU" not in oracle["sums"] and gpla["n"] == oracle["n"] > 4
    assert written["gpla"][0]["count"] == 2 and set(written["judges"][0]["judges"]) == {"rules", "grounding", "both"}
    text = tables.write(miniature, tmp_path / "tables").read_text()
    assert "| Supervised (published) |" in text and "| lt_gpla |" in text
    assert "BERTScore is empty; `la4vla eval words ... --bert DIR" in text
    run.run(miniature, [], hours=0.0)  # every job has its row, so nothing is left to start
