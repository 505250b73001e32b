"""Why: the study's tables are what the project says about the paper. A job must not run twice or be lost to a kill,
rows must belong to exactly what made them, budgets must match, and a difference must be tested as worked by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.results import protocols, results, stats
from benchmarks.study import config as study_config
from benchmarks.study import hours, measure, plan, rows, run, scores, tables
from benchmarks.study.jobs import StudyJob, everything
from la4vla import config
from la4vla.types import UserError

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "configs/study/study.yaml"
PARADIGMS = ("base", "la", "vla", "la_vla", "mixpt")


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def jobs_of(study, *parts):
    return {job.name: job for job in plan.expand(study, parts)}


def test_the_shipped_study_is_what_the_paper_asks_at_a_small_scale():
    study = study_config.load(STUDY)
    protocol = protocols.load(study.protocol)
    assert len(protocol.tasks) >= 10 and len(protocol.groups) == 4 and protocol.episodes == 20
    pretrained, tuned = (config.load(study.construct[name]).record for name in ("pretrain", "finetune"))
    assert set(tuned.tasks) == set(protocol.tasks) and not set(tuned.tasks) & set(pretrained.tasks)
    assert (tuned.fast, pretrained.fast, tuned.image_size) == (protocol.fast, protocol.fast, protocol.image_size)
    held_out = config.load(study.construct["direction_episodes"])
    assert held_out.record.first_episode >= pretrained.first_episode + 2 * pretrained.episodes
    assert held_out.read.path != config.load(study.construct["direction"]).read.path
    names = jobs_of(study)
    assert {f"evaluate/{arm}/{seed}" for arm in PARADIGMS for seed in range(3)} <= names.keys()


def test_budgets_match():
    study = study_config.load(STUDY)
    pretrainings = [config.load(study.pretrainings[name].recipe) for name in (*PARADIGMS[1:], "la_leaky")]
    assert {sum(measure.samples(recipe).values()) for recipe in pretrainings} == {19_200}
    assert {recipe.data.stats_source for recipe in [*pretrainings, config.load(study.finetune)]} == {"la"}
    assert not any(study.conditions[arm].changes for arm in (*PARADIGMS, "la_leaky", "la_removed"))


def test_leaky_masking_and_true_removal_differ_in_the_kind_alone():
    """The name of a source seeds its order and noise, its path says where samples start."""
    both = [study_config.load(STUDY).pretrainings[name] for name in ("la_leaky", "la_removed")]
    leaky, removed = (asdict(config.load(training.recipe, training.changes)) for training in both)
    assert (leaky["data"]["sources"]["leaky"].pop("kind"), removed["data"]["sources"]["leaky"].pop("kind")) == (
        "la_leaky",
        "la",
    )
    assert leaky == removed and list(leaky["stages"]["pretrain"]["mixture"]) == ["leaky"]


@pytest.mark.parametrize("job", ["finetune/la/0", "pretrain/la/0", "construct/pretrain"])
def test_a_digest_is_of_what_decides_a_result(tmp_path, job):
    """The job itself, and through what it needs the others. Seeds, recipes and data count; processes do not."""

    def digest(study):
        chain = {item.name: item for item in everything(plan.expand(study, ["paradigms_0"]))}
        return chain[job].of

    study = study_config.load(STUDY)
    assert digest(study) == digest(study_config.load(STUDY, ["processes=4", "minutes.train=9"]))
    copied = tmp_path / "construct.yaml"
    copied.write_text((ROOT / study.construct["pretrain"]).read_text().replace("episodes: 20", "episodes: 21"))
    assert digest(replace(study, construct={**study.construct, "pretrain": str(copied)})) != digest(study)
    chain = {item.name: item.of for item in everything(plan.expand(study, ["paradigms_0", "paradigms_1"]))}
    assert job == "construct/pretrain" or chain[job] != chain[job.replace("/0", "/1")]
    longer = study_config.load(STUDY, ["pretrainings.la.changes=[stages.pretrain.steps=601]"])
    assert (digest(longer) != digest(study)) == (job != "construct/pretrain")


def test_an_evaluation_is_of_its_protocol():
    said = [study_config.load(STUDY, [f"protocol=metaworld/{name}"]) for name in ("study-v1", "quickstart-v1")]
    first, second = (jobs_of(study, "paradigms_0")["evaluate/la/0"] for study in said)
    assert first.of != second.of and first.needs[0].of == second.needs[0].of


def test_comments_change_no_digest_and_what_is_said_does(tmp_path):
    study = study_config.load(STUDY)
    recipe = Path(study.pretrainings["la"].recipe)
    kept, changed = tmp_path / "kept.yaml", tmp_path / "changed.yaml"
    text = recipe.read_text().replace("base: common.yaml", f"base: {recipe.resolve().parent / 'common.yaml'}")
    kept.write_text("# said\n" + text)
    changed.write_text(text.replace("warmup_steps: 50", "warmup_steps: 51"))

    def digest(path):
        return jobs_of(study_config.load(STUDY, [f"pretrainings.la.recipe={path}"]), "paradigms_0")["evaluate/la/0"].of

    assert digest(recipe) == digest(kept) != digest(changed)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parts.noise_0.conditions=[bse]", "parts.noise_0.conditions: `bse` is not one of base"),
        ("conditions.la.pretraining=lla", "conditions.la.pretraining: `lla`"),
        ("conditions.la.against=[nothing]", "conditions.la.against: `nothing`"),
        ("device=tpu", "neither cpu nor cuda"),
        ("parts.directions.probe={la: [none]}", "`none` is not one of by_episode"),
    ],
)
def test_a_slip_in_the_plan_is_named(override, words):
    with pytest.raises(UserError) as caught:
        study_config.load(STUDY, [override])
    assert words in str(caught.value)


def test_data_that_no_job_writes_is_refused():
    study = study_config.load(STUDY, ["pretrainings.la.changes=[data.sources.la.path=elsewhere/la]"])
    with pytest.raises(UserError, match="elsewhere, which no config of `construct` writes"):
        plan.expand(study, ["paradigms_0"])


# Hours: what the committed rows say.


def committed():
    """Lines of docs/study/rows, file by file, read without the study's code."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (ROOT / "docs/study/rows").glob("*.jsonl")
    }


def test_the_committed_tables_are_what_the_committed_rows_give(tmp_path):
    """And every row's digest is still a job's: a change of digests would empty the tables. Made anew by
    `la4vla eval study configs/study/study.yaml --tables`."""
    study = study_config.load(STUDY)
    found = rows.StudyRows(Path(study.rows))
    assert len(found.newest(everything(plan.expand(study)))) == sum(len(lines) for lines in committed().values())
    path = tables.write(study, tmp_path)
    assert path.read_text() == (ROOT / "docs/study/tables.md").read_text()


def test_hours_are_summed_from_the_rows_and_each_row_counts_once():
    study = study_config.load(STUDY)
    parts = hours.by_part(study, rows.StudyRows(Path(study.rows)))
    every = [row for lines in committed().values() for row in lines]
    assert sum(part.measured for part in parts) * 3600 == pytest.approx(sum(row["seconds"] for row in every))
    seed = [row for row in every if row["job"] in {f"evaluate/{name}/1" for name in PARADIGMS}]
    trained = [row for row in every if re.fullmatch(rf"(pretrain|finetune)/({'|'.join(PARADIGMS)})/1", row["job"])]
    (second,) = [part for part in parts if part.part == "paradigms_1"]
    assert second.measured * 3600 == pytest.approx(sum(row["seconds"] for row in [*seed, *trained]))
    assert len(seed) == 5 and len(trained) == 9 and second.left == 0


def test_what_the_plan_and_its_header_say_of_hours_is_what_the_rows_give():
    """The header's hours are rounded; the expected minutes of a kind are the mean of its rows, near enough."""
    study = study_config.load(STUDY)
    parts = hours.by_part(study, rows.StudyRows(Path(study.rows)))
    total = sum(part.measured + part.left for part in parts)
    (said,) = re.findall(r"^# Cost: ([\d.]+) hours", STUDY.read_text(), re.MULTILINE)
    assert float(said) == pytest.approx(total, abs=0.06)
    means = {kind: sum(row["seconds"] for row in lines) / 60 / len(lines) for kind, lines in committed().items()}
    assert study.minutes == pytest.approx(means, rel=0.1, abs=0.06)


def test_a_job_without_a_row_is_expected_to_take_what_its_like_took(tmp_path):
    study, (job, _) = toy(tmp_path)
    study.minutes = {"train": 9.0}
    found = rows.StudyRows(tmp_path)
    assert hours.expected_minutes(study, found, job) == 9.0
    line = {"study": "toy", "file": "train.jsonl", "job": "first", "cores": 2}
    found.all += [line | {"seconds": 60 * minutes} for minutes in (1, 3, 8)]
    found.all += [line | {"seconds": 60, "study": "other"}, line | {"seconds": 60, "job": "second"}]
    found.all += [line | {"seconds": 6000, "cores": 16}]
    assert hours.expected_minutes(study, found, job, cores=2) == 3.0
    assert hours.expected_minutes(study, found, job) == 5.5


# Running: jobs whose commands are small scripts that note their runs in a file.


def toy(tmp_path, script="pass"):
    """A study and two jobs, the second of which needs the first."""
    study = study_config.StudyConfig(name="toy", out=str(tmp_path / "out"), rows=str(tmp_path / "rows"))

    def job(name, needs=(), extra="pass"):
        folder = tmp_path / "out" / name
        code = f"import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(exist_ok=True, parents=True)\n"
        code += f"open({str(tmp_path / 'log')!r}, 'a').write({name!r} + '\\n')\n{extra}"
        return StudyJob(name, "train", f"of-{name}", folder, (sys.executable, "-c", code), needs, {})

    first = job("first", extra=script)
    return study, [first, job("second", (first,))]


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs the toy jobs; returns the names of those that were started since the last time."""
    monkeypatch.setattr(run, "measure", lambda job: {"loss": 1.0})

    def start(study, jobs, hours=1.0):
        monkeypatch.setattr(run, "expand", lambda study, parts=(): jobs)
        log = tmp_path / "log"
        log.write_text("")
        run.run(study, [], hours)
        return log.read_text().split()

    return start


def test_done_jobs_are_skipped_and_lost_folders_made_again(tmp_path, ran):
    study, jobs = toy(tmp_path)
    assert ran(study, jobs[1:]) == ["first", "second"], "what it needs runs first"
    assert ran(study, jobs) == []
    (tmp_path / "out" / "second").rmdir()
    assert ran(study, jobs) == [], "the row is what counts"
    changed = [replace(jobs[1], of="of-changed")]
    (tmp_path / "out" / "first").rmdir()
    assert ran(study, changed) == ["first", "second"], "a job of another machine's rows needs its folders here"
    found = rows.StudyRows(Path(study.rows))
    assert [row["job"] for row in found.all] == ["first", "second", "first", "second"]
    assert found.of(jobs[1])["of"] == "of-second" and found.of(changed[0])["of"] == "of-changed"


def test_a_recipe_that_changes_under_a_run_stops_it(tmp_path, ran, monkeypatch):
    study, jobs = toy(tmp_path)
    other = [replace(job, of=f"{job.of}-changed") for job in jobs]
    answers = iter([jobs, jobs, other])
    monkeypatch.setattr(run, "expand", lambda study, parts=(): next(answers))
    with pytest.raises(UserError, match="second: its recipe has changed since this run began"):
        run.run(study, [], 1.0)
    assert (tmp_path / "log").read_text().split() == ["first"]


def test_data_of_another_recipe_in_the_same_folder_are_made_again(tmp_path, ran):
    study, (first, _) = toy(tmp_path)
    one, two = (replace(first, kind="construct", of=name) for name in ("one", "two"))
    wanted = [
        StudyJob(f"use {n}", "train", f"use {n}", first.folder, first.command, (job,), {})
        for n, job in enumerate((one, two, one))
    ]
    assert ran(study, wanted[:1]) == ran(study, wanted[1:2]) == ran(study, wanted[2:]) == ["first", "first"]


def test_a_failed_job_stops_the_run_and_is_tried_again(tmp_path, ran):
    study, jobs = toy(tmp_path, "import sys; sys.exit(0 if (p / 'again').exists() else (p / 'again').touch() or 3)")
    with pytest.raises(UserError, match="first failed with status 3"):
        ran(study, jobs)
    assert rows.StudyRows(Path(study.rows)).all == []
    assert ran(study, jobs) == ["first", "second"]


def test_no_job_is_started_that_would_end_too_late(tmp_path, ran, capsys):
    study, jobs = toy(tmp_path)
    study.minutes = {"train": 30.0}
    assert ran(study, jobs, hours=0.4) == []
    assert "first takes about 30 minutes and 24 are left" in capsys.readouterr().out
    assert ran(study, jobs[:1], hours=0.6) == ["first"]


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import test_study
from benchmarks.study import run
study, jobs = test_study.toy(Path({folder!r}), {script!r})
run.expand = lambda study, parts=(): jobs
run.measure = lambda job: {{}}
run.run(study, [], 1.0)
"""


def test_a_terminated_run_takes_its_command_along_and_is_resumed(tmp_path, ran):
    script = "import time, os; (p / 'pid').write_text(str(os.getpid())); time.sleep(600)"
    driver = DRIVER.format(root=str(ROOT), tests=str(Path(__file__).parent), folder=str(tmp_path), script=script)
    process = subprocess.Popen([sys.executable, "-c", driver])
    pid = tmp_path / "out" / "first" / "pid"
    until = time.monotonic() + 600
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    study, jobs = toy(tmp_path)
    with pytest.raises(UserError, match="still at work"):
        ran(study, jobs)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert ran(study, jobs) == ["first", "second"]
    assert rows.StudyRows(Path(study.rows)).all[0]["seconds"] >= 0


def test_outcomes_are_whole_and_a_crash_is_none(tmp_path):
    protocol = protocols.load("metaworld/study-v1", ["episodes=2"])
    job = replace(toy(tmp_path)[1][0], folder=tmp_path / "clean")
    kept = results.Results(job.folder, "h", "p", "clean")
    results.write_run(job.folder, {"protocol": asdict(protocol), "title": "t", "policy": "p", "step": 9, "gl": "egl"})

    def end(task, episode, success):
        fields = dict.fromkeys(("group", "error", "gl"), "") | dict.fromkeys(("seed", "steps", "queries", "step"), 0)
        fields |= {"attempts": 1, "protocol": "t", "protocol_hash": "h", "policy": "p", "perturbation": "clean"}
        fields |= {"versions": {}, "wall_s": 1.0, "seconds": {}, "latencies_ms": (), "final_state": ()}
        kept.append(results.Row(task=task, episode=episode, success=success, **fields))

    for task in protocol.tasks:
        end(task, 1, success=True)
        end(task, 0, success=None if task == protocol.tasks[0] else False)
    with pytest.raises(UserError, match="1 episodes are missing or crashed; run the study again"):
        measure.outcomes(job)
    end(protocol.tasks[0], 0, success=True)
    found = measure.outcomes(job)
    assert found["n"] == 2 * len(protocol.tasks) and found["successes"].pop(protocol.tasks[0]) == "11"
    assert set(found["successes"].values()) == {"01"}


# Tables: rows given by hand.


def evaluation(arm, seed, wins, protocol_hash="p", perturbation="clean"):
    """wins: task -> outcomes; all other tasks fail twice."""
    protocol = protocols.load("metaworld/study-v1")
    return {
        "job": f"evaluate/{arm}/{seed}",
        "arm": arm,
        "seed": seed,
        "perturbation": perturbation,
        "protocol_hash": protocol_hash,
        "policy": f"{arm}{seed}",
        "successes": {task: wins.get(task, "00") for task in protocol.tasks},
    }


TASKS = protocols.load("metaworld/study-v1").tasks
BETTER = {TASKS[0]: "11", TASKS[1]: "11", TASKS[2]: "10"}


def test_a_difference_is_tested_over_episodes_and_over_tasks():
    """5 discordant episodes, all for the arm: 2 / 2^5. 3 tasks that differ, all for it: 2 of the 2^3 signs."""
    found = scores.difference([evaluation("base", 0, {})], [evaluation("la", 0, BETTER)])
    assert found is not None
    assert (found.pairs.n, found.pairs.only_b, found.pairs.p_value) == (2 * len(TASKS), 5, 2 / 2**5)
    assert found.p_tasks == 2 / 2**3
    assert found.seeds == {0: 5 / (2 * len(TASKS))} and found.tasks[TASKS[2]] == 0.5


def test_only_the_same_seed_task_and_state_is_paired():
    arm = evaluation("la", 0, {**BETTER, TASKS[3]: "01"})
    found = scores.difference([evaluation("base", 0, {}), evaluation("base", 1, {})], [arm])
    assert found is not None and found.pairs.n == 2 * len(TASKS) and found.pairs.only_b == 6
    assert scores.difference([evaluation("base", 1, {})], [arm]) is None


def test_rows_of_two_protocols_never_meet():
    with pytest.raises(UserError, match="different protocols"):
        scores.difference([evaluation("base", 0, {}, "p")], [evaluation("la", 0, {}, "q")])


@pytest.mark.parametrize(("differences", "p"), [([1, 1, 1], 2 / 8), ([0.5], 1), ([1, -1], 1), ([3, 1, 0], 4 / 8)])
def test_sign_flip(differences, p):
    assert stats.sign_flip(differences) == p


def test_the_tables_are_made_of_the_rows_alone(tmp_path):
    study = study_config.load(STUDY, [f"rows={tmp_path / 'rows'}"])
    jobs = {job.name: job for job in everything(plan.expand(study))}
    empty = tables.write(study, tmp_path / "empty").read_text()
    assert "Nothing yet; the part paradigms" in empty
    (tmp_path / "rows").mkdir()
    given = [evaluation("base", 0, {}), evaluation("la", 0, BETTER), evaluation("la", 0, {}, perturbation="light:3")]
    given[2]["job"] += "/light_3"
    stale = {**evaluation("vla", 0, BETTER), "of": "of another recipe"}
    lines = [{"of": jobs[row["job"]].of, "seconds": 60, "cores": 2, **row} for row in [*given, stale]]
    (tmp_path / "rows" / "evaluate.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = tables.write(study, tmp_path / "full").read_text()
    paradigms = text[text.index("## Table 4") : text.index("## Table 6")]
    difference = next(line for line in paradigms.splitlines() if line.startswith("| la - base"))
    cells = [cell.strip() for cell in difference.split("|")]
    assert cells[2] == "20" and cells[3].startswith("+25.0") and cells[4:7] == ["0.0625", "0.25", "0: +25.0"]
    assert "| vla |" not in paradigms, "a row of another recipe is in no table"
    assert "LA4VLA-1B MixPT | 88.9" in paradigms
    assert "LA4VLA-1B MixPT | 65.0 | 75.0 | 70.0 |" in text[text.index("## Table 6") :]
    lost = next(line for line in text[text.index("### light:3") :].splitlines() if line.startswith("| la |"))
    assert "-25.0" in lost
    assert (tmp_path / "full" / "tables.svg").read_bytes().startswith(b"<?xml")


def test_a_broken_row_is_named(tmp_path):
    (tmp_path / "evaluate.jsonl").write_text('{"of": 1}\n{"of"\n')
    with pytest.raises(UserError, match=r"evaluate\.jsonl:2: not a row"):
        rows.StudyRows(tmp_path)
