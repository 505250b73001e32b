"""Why: a sweep must run every combination once, go on where it stopped, and never print a rate that nobody measured or
put one of ours into a published cell. Rows are real ones, jobs are real processes; SLURM's programs are stand-ins."""

import functools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.results import protocols, results, stats
from benchmarks.results.results import Results, Row
from benchmarks.sweep import slurm, sweep, tables
from benchmarks.sweep.jobs import State, SweepCondition, SweepConfig, SweepJob, expand
from la4vla import manifest
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import UserError
from tests.hand_checkpoint import write_checkpoint

QUICK, MT50 = "metaworld/quickstart-v1", "metaworld/mt50-v1"
NOISE = Variant("gaussian_noise", 2)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three training seeds."""
    top = tmp_path_factory.mktemp("checkpoints")
    return [str(write_checkpoint(top / name, EMBODIMENT, ("corner4",), seed)) for seed, name in enumerate("abc")]


def fill(job: SweepJob, variant=CLEAN, successes=lambda number: True, **changes):
    """Rows for all of a job's episodes, as an evaluation writes them. successes: by the episode's place in the job."""
    stored = Results(job.folder_of(variant), job.protocol.hash, job.policy, variant.identity)
    for number, (task, episode) in enumerate(job.wanted):
        stored.append(row(job, task, episode, successes(number), variant, **changes))


def row(job, task, episode, success, variant=CLEAN, **changes):
    group = next((group for group, tasks in job.protocol.groups.items() if task in tasks), "")
    values = dict(
        task=task, group=group, episode=episode, seed=0, success=success, error="" if success is not None else "fell",
        steps=8, queries=1, attempts=1, protocol=job.title, protocol_hash=job.protocol.hash, policy=job.policy,
        perturbation=variant.identity, step=7, versions={}, gl="egl", wall_s=123.0, seconds={}, latencies_ms=[1.0],
        final_state=[0.0],
    )  # fmt: skip
    return Row(**(values | changes))


def drawn(jobs, baseline="", **states):
    named = {job: State(states.get(job.label, "")) for job in jobs}
    return {table.name: table for table in tables.build_tables(jobs, named, baseline)}


# What runs ------------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_job_of_its_own_folder_and_protocol(checkpoints):
    a, b, _ = checkpoints
    jobs = expand(SweepConfig(out="x", checkpoints={"one": a, "two": [a, b]}, protocols=[QUICK], replan=[8, 4]))
    assert len({job.folder for job in jobs}) == 6 and [job.label for job in jobs].count("two") == 4
    own = protocols.load(QUICK)
    assert [job.protocol.hash == own.hash for job in jobs] == [True, False] * 3
    assert [job.setting for job in jobs[:2]] == [QUICK, f"{QUICK}, replan 4"]
    assert "replan_every=4" in jobs[1].argv and "replan_every=4" not in jobs[0].argv


def test_perturbations_come_and_go_without_moving_the_clean_rows(checkpoints, tmp_path):
    """The folder that a job's command is given makes the conditions' folders out of itself, or is the clean
    condition's."""
    config = SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[QUICK], episodes=1)
    (plain,) = expand(config)
    fill(plain)
    (perturbed,) = expand(replace(config, perturbations=["fog:3"]))
    assert plain.complete and len(SweepCondition.read(perturbed, CLEAN).rows) == len(plain.wanted)
    given = [Path(job.argv[job.argv.index("--out") + 1]) for job in (plain, perturbed)]
    assert given == [plain.folder_of(CLEAN), perturbed.folder_of(CLEAN).parent] and perturbed.folder == plain.folder
    (plain.folder_of(CLEAN) / results.EPISODES).rename(plain.folder / results.EPISODES)
    with pytest.raises(UserError, match=r"move its files to .*clean"):
        expand(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": {}}, "checkpoints"),
        ({"checkpoints": {"x": "/nowhere"}}, "no such checkpoint"),
        ({"checkpoints": {"x": {"deep": "a"}}}, "a list of folders"),
        ({"protocols": [QUICK, QUICK]}, "in the sweep twice"),
        ({"baseline": "none"}, "is no label"),
        ({"runner": "cloud"}, "use here or slurm"),
        ({"episodes": 1000}, "has 20 a task"),
        ({"perturbations": ["rain"]}, "no perturbation `rain`"),
    ],
)
def test_a_slip_is_refused_before_anything_runs(checkpoints, changes, words):
    good = {"out": "x", "checkpoints": {"a": checkpoints[0]}, "protocols": [QUICK]}
    with pytest.raises(UserError, match=words):
        expand(SweepConfig(**(good | changes)))


def test_copied_weights_are_no_second_seed(checkpoints, tmp_path):
    shutil.copytree(checkpoints[0], tmp_path / "copy")
    with pytest.raises(UserError, match="in the sweep twice"):
        expand(SweepConfig(out="x", checkpoints={"a": [checkpoints[0], str(tmp_path / "copy")]}, protocols=[QUICK]))


def test_steps_of_one_run_are_no_seeds(checkpoints, tmp_path):
    for seed, step in enumerate((100, 200)):
        shutil.copytree(checkpoints[seed], tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
    steps = sorted(map(str, (tmp_path / "run" / "checkpoints").iterdir()))
    with pytest.raises(UserError, match=r"are steps of one run, .* a label of its own"):
        expand(SweepConfig(out="x", checkpoints={"a": steps}, protocols=[QUICK]))
    for seed, name in enumerate(("x", "y")):
        shutil.copytree(checkpoints[seed], tmp_path / "checkpoints" / name)
    seeds = [str(tmp_path / "checkpoints" / name) for name in ("x", "y")]
    assert len(expand(SweepConfig(out="x", checkpoints={"a": seeds}, protocols=[QUICK]))) == 2
    labelled = {f"step{number}": step for number, step in enumerate(steps)}
    assert len(expand(SweepConfig(out="x", checkpoints=labelled, protocols=[QUICK, MT50]))) == 4


# What is drawn --------------------------------------------------------------------------------------------------------


def test_published_averages_and_gains_follow_from_their_cells():
    """A cell mistyped would show here: the paper's averages are the means of the cells, its gains differences of
    averages."""
    known = json.loads(tables.PUBLISHED.read_text())["tables"]
    assert {name: len(table["rows"]) for name, table in known.items()} == {"metaworld": 14, "libero": 13, "noise": 4}
    for table in known.values():
        without = {line["model"]: line["average"] for line in table["rows"] if line["pretrain"] == "No"}
        for line in table["rows"]:
            assert len(line["rates"]) == len(table["columns"]) == len(table["tasks"])
            assert statistics.fmean(line["rates"]) == pytest.approx(line["average"], abs=0.0501)
            if line["gain"] is not None:
                assert line["average"] - without[line["model"]] == pytest.approx(line["gain"], abs=0.006)


def test_the_same_tasks_stand_in_the_papers_table_with_interval_and_gain(checkpoints, tmp_path):
    a, b, _ = checkpoints
    jobs = expand(SweepConfig(out=str(tmp_path), checkpoints={"base": a, "better": b}, protocols=[MT50], episodes=1))
    fill(jobs[0], successes=lambda number: number < 14)  # of 28 easy tasks
    fill(jobs[1], successes=lambda number: number < 28)
    table = drawn(jobs, baseline="base")["metaworld"]
    assert [line.label for line in table.ours] == ["base", "better"] and table.gains == (0.0, 12.5)
    assert table.ours[0].cells["easy"].pooled == stats.rate([True] * 14 + [False] * 14)
    text = table.markdown()
    assert f"| ours | better, {MT50} |  | 100.0 [87.9, 100.0], 28/28 | 0.0 [0.0, 25.9], 0/11 |" in text
    assert "| published | LA4VLA-1B | MixPT | 88.9 | 94.5 | 66.7 | 100.0 | 87.53 | +17.80 |" in text
    assert all(line.startswith(("| ours", "| published")) for line in text.splitlines()[6:] if line.startswith("| "))


def test_other_tasks_have_columns_of_their_own(checkpoints, tmp_path):
    """The quickstart's five easy tasks are not the paper's 28."""
    jobs = expand(SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[QUICK], episodes=2))
    fill(jobs[0])
    found = drawn(jobs)
    assert found["metaworld"].ours == () and tables.NOT_OURS in found["metaworld"].notes
    own = found[f"clean {QUICK}"]
    assert own.headings == ("easy (5 tasks)",) and not own.averaged and not own.published
    assert "100.0 [72.2, 100.0], 10/10 | 10 of 10 |" in own.markdown()


@pytest.mark.parametrize("title", ["libero/openvla_90-v1", "libero/heldout-v1", "libero/openvla-v1"])
def test_every_protocol_can_be_drawn_before_it_has_run(checkpoints, tmp_path, title):
    jobs = expand(SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[title]))
    found = drawn(jobs, a="not run yet")
    table = found["libero"] if title == "libero/openvla-v1" else found[f"clean {title}"]
    asked = len(jobs[0].wanted)
    assert set(table.shown(table.ours[0])) == {None} and f"| 0 of {asked}; not run yet |" in table.markdown()


def test_noise_of_ours_never_enters_a_clean_or_a_real_robots_cell(checkpoints, tmp_path):
    config = SweepConfig(
        out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[MT50], episodes=1,
        perturbations=["gaussian_noise:2", "fog:3"],
    )  # fmt: skip
    jobs = expand(config)
    fill(jobs[0])
    fill(jobs[0], NOISE, lambda number: False)
    found = drawn(jobs)
    assert [line.variant for line in found["metaworld"].ours] == [CLEAN]
    assert found["metaworld"].ours[0].average.mean == 1.0
    assert found[f"noise {MT50}"].title.startswith("Gaussian noise, ours, simulated")
    assert [line.average.mean for line in found[f"noise {MT50}"].ours] == [0.0]
    assert found["noise"].ours == () and len(found["noise"].published) == 4
    fog = found[f"perturbed {MT50}"]
    assert "gaussian_noise:2=20" in found[f"noise {MT50}"].markdown() and "fog:3=2.0 |  |  |  |" in fog.markdown()


def test_only_what_was_asked_for_is_counted_and_gaps_are_said(checkpoints, tmp_path):
    (job,) = expand(SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[QUICK], episodes=2))
    stored = Results(job.folder_of(CLEAN), job.protocol.hash, job.policy, "clean")
    for number, (task, episode) in enumerate(job.wanted[:7]):
        stored.append(row(job, task, episode, None if number == 6 else number < 3))
    stored.append(row(job, job.wanted[0][0], 19, True))  # of a larger sweep
    stored.append(row(job, "reach-v3", 0, True))  # of no task of the protocol
    with stored.path.open("a") as file:
        file.write('{"task": "door')  # being written
    condition = SweepCondition.read(job, CLEAN)
    assert (len(condition.rows), condition.asked, condition.crashed, condition.foreign) == (
        6,
        10,
        1,
        0,
    ) and not job.complete
    text = drawn([job])[f"clean {QUICK}"].markdown()
    assert "50.0 [18.8, 81.2], 3/6 |" in text and "| 6 of 10; 1 crashed |" in text


@pytest.mark.parametrize("change", [{"policy": "old"}, {"protocol_hash": "old"}, {"perturbation": "fog:3=2.0"}])
def test_rows_of_something_else_are_left_out_and_said(checkpoints, tmp_path, change):
    """A checkpoint trained anew under the same name: its old rows are not its rates."""
    (job,) = expand(SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[QUICK], episodes=2))
    own = {"protocol_hash": job.protocol.hash, "policy": job.policy, "perturbation": "clean"} | change
    stored = Results(job.folder_of(CLEAN), own["protocol_hash"], own["policy"], own["perturbation"])
    stored.append(row(job, *job.wanted[0], True, **change))
    table = drawn([job])[f"clean {QUICK}"]
    assert table.shown(table.ours[0]) == [None] and not table.ours[0].whole
    assert "| 0 of 10; 1 rows of another policy" in table.markdown()


def test_seeds_share_a_row_with_their_mean_and_spread_and_are_listed_alone(checkpoints, tmp_path):
    config = SweepConfig(out=str(tmp_path), checkpoints={"mixpt": checkpoints}, protocols=[QUICK], episodes=2)
    jobs = expand(config)
    for job, share in zip(jobs, (2, 4, 9), strict=True):
        fill(job, successes=lambda number, share=share: number < share)
    table = drawn(jobs)[f"clean {QUICK}"]
    (line,) = table.ours
    cell = line.cells["easy"]
    assert (cell.mean, cell.deviation) == pytest.approx((0.5, statistics.stdev([0.2, 0.4, 0.9])))
    assert cell.pooled == stats.rate([True] * 15 + [False] * 15)
    assert cell.detail == "sd 36.1 of 3 seeds, pooled [33.2, 66.8], 15/30" and line.episodes == "30 of 30"
    listed = table.numbers()["ours"][0]["seeds"]
    assert [(seed["checkpoint"], seed["rates"]["easy"]) for seed in listed] == [
        (checkpoints[0], 0.2), (checkpoints[1], 0.4), (checkpoints[2], 0.9)
    ]  # fmt: skip
    (jobs[2].folder_of(CLEAN) / results.EPISODES).unlink()
    fill(jobs[2], successes=lambda number: None if number else True)
    (line,) = drawn(jobs)[f"clean {QUICK}"].ours
    assert line.cells["easy"].mean == pytest.approx((0.2 + 0.4 + 1.0) / 3)
    assert line.cells["easy"].detail.endswith("pooled 7/21") and line.episodes == "21 of 30; 9 crashed"


def test_the_page_escapes_marks_and_fetches_nothing(checkpoints, tmp_path):
    jobs = expand(SweepConfig(out=str(tmp_path), checkpoints={"<b>": checkpoints[0]}, protocols=[MT50], episodes=1))
    tables.write(tables.build_tables(jobs, {jobs[0]: State("failed, exit status 2", failed=True)}, ""), tmp_path)
    page, whole = (tmp_path / "tables.html").read_text(), json.loads((tmp_path / "tables.json").read_text())
    assert "<b>&lt;b&gt;</b>" in page and "failed, exit status 2" in page and "published, theirs" in page
    assert "http" not in page and "src=" not in page
    assert whole["tables"][0]["ours"][0]["average"] is None and whole["tables"][0]["published"][-1]["average"] == 87.53


# Where it runs --------------------------------------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.slow
def test_jobs_of_a_cluster_run_fail_alone_and_go_on(checkpoints, tmp_path, monkeypatch, capsys):
    """submitit's own processes in place of SLURM, real evaluations of two episodes."""
    rules = tmp_path / "short.yaml"
    rules.write_text(
        "{name: short, version: 1, suite: metaworld, first_episode: 0, episodes: 2, seed: 0, horizon: 8, wait_steps: 0,"
        " replan_every: 8, views: [corner4], image_size: 112, fast: true, success: any_step, "
        "groups: {easy: [reach-v3]}}"
    )
    bad = write_checkpoint(tmp_path / "bad", EMBODIMENT, ("corner4",), seed=9)
    (bad / manifest.WEIGHTS).write_bytes(b"not weights")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"{{out: {tmp_path / 'out'}, checkpoints: {{good: {checkpoints[0]}, bad: {bad}}}, protocols: [{rules}], "
        "workers: 1, runner: slurm, slurm: {timeout_min: 60}}"
    )
    good, broken = expand(sweep.config.load(path, schema=SweepConfig))
    stored = Results(good.folder_of(CLEAN), good.protocol.hash, good.policy, "clean")
    stored.append(row(good, "reach-v3", 0, True))  # of a sweep that was interrupted here
    results.write_run(good.folder_of(CLEAN), {"time": "some"})
    monkeypatch.setattr(slurm, "POLL_S", 0.5)
    monkeypatch.setattr(slurm, "run", functools.partial(slurm.run, cluster="local"))

    assert sweep.run(path, []) == 1
    first, second = results.read_rows(good.folder_of(CLEAN))
    assert first.wall_s == 123.0 and second.episode == 1 and second.steps == 8 and second.policy == good.policy
    assert "2 jobs, 0 of them complete" in (said := capsys.readouterr()).out and "exit status 2" in said.err
    assert good.complete and not broken.complete
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| 2 of 2 |" in text and "| 0 of 2; failed, exit status 2" in text

    started = []
    monkeypatch.setattr(subprocess, "run", lambda argv: started.append(argv) or subprocess.CompletedProcess(argv, 2))
    assert sweep.run(path, ["runner=here"]) == 1
    assert started == [broken.argv]


@pytest.mark.slow
def test_a_preempted_job_is_run_again_and_its_command_ended(tmp_path):
    """The first life of the command never ends by itself."""
    submitit = pytest.importorskip("submitit")
    lives, script = tmp_path / "lives", tmp_path / "command.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "lives = pathlib.Path(sys.argv[1])\n"
        "born = lives.read_text() if lives.exists() else ''\n"
        "lives.write_text(f'{born}{os.getppid()} {os.getpid()}\\n')\n"
        "time.sleep(0 if born else 600)\n"
    )
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=60)
    (handle,) = executor.submit_array([slurm.SlurmCommand([sys.executable, str(script), str(lives)])])
    deadline = time.monotonic() + 60
    while not (lives.exists() and lives.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.1)
    submitter, command = map(int, lives.read_text().split())
    os.kill(submitter, signal.SIGUSR2)  # as SLURM tells submitit of a preemption
    assert handle.result() == 0 and len(lives.read_text().splitlines()) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """srun, sbatch and sacct that answer as SLURM does and note what they are given."""
    programs = {
        "srun": "exit 1",
        "sbatch": f'cat "$1" >> {tmp_path}/sbatch.txt; echo "Submitted batch job 77"',
        "sacct": f"cat {tmp_path}/sacct.txt",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sacct.txt").write_text("JobID|State|NodeList\n77_0|RUNNING|n1\n77_1|PENDING|\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "sbatch.txt"


def test_an_array_is_submitted_once_found_again_and_its_losses_are_said(checkpoints, tmp_path, scheduler, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)  # for a result on a slow file system
    config = SweepConfig(out=str(tmp_path / "out"), checkpoints={"a": checkpoints[:2]}, protocols=[QUICK])
    jobs = expand(config)
    parameters = {"timeout_min": 90, "gpus_per_node": 1, "slurm_partition": "short", "slurm_array_parallelism": 1}
    for _ in range(2):
        states = slurm.run(jobs, tmp_path / "out", parameters, wait=False)
        assert [state.text for state in states.values()] == ["job 77_0 has not ended", "job 77_1 has not ended"]
        assert not any(state.failed for state in states.values())
    script = scheduler.read_text()
    assert script.count("#!/bin/bash") == 1
    for line in ("--array=0-1%1", "--partition=short", "--gpus-per-node=1", "--time=90", "--job-name=sweep"):
        assert f"#SBATCH {line}" in script
    scheduler.with_name("sacct.txt").write_text("JobID|State|NodeList\n77_0|RUNNING|n1\n77_1|CANCELLED by 0|\n")
    submitit.SlurmJob.watcher.clear()
    states = slurm.run(jobs, tmp_path / "out", parameters, wait=False)
    assert [state.text for state in states.values()] == [
        "job 77_0 has not ended",
        "job 77_1 gave no exit status, state CANCELLED by 0 (slurm/77_1_0_log.err); submitted again as 77",
    ]
    assert [state.failed for state in states.values()] == [False, True]
    assert scheduler.read_text().count("#!/bin/bash") == 2  # the lost one alone, again
    assert "--array" not in scheduler.read_text().split("#!/bin/bash")[2]

    def lose(seconds):
        scheduler.with_name("sacct.txt").write_text("JobID|State|NodeList\n77_0|FAILED|n1\n77|TIMEOUT|\n")
        submitit.SlurmJob.watcher.clear()

    monkeypatch.setattr(time, "sleep", lose)
    states = slurm.run(jobs, tmp_path / "out", parameters, wait=True)
    assert [state.text for state in states.values()] == [
        "job 77_0 gave no exit status, state FAILED (slurm/77_0_0_log.err)",
        "job 77 gave no exit status, state TIMEOUT (slurm/77_0_log.err)",
    ]
    assert all(state.failed for state in states.values())


def test_a_job_that_was_submitted_for_another_command_is_not_taken_for_this_one(
    checkpoints, tmp_path, scheduler, monkeypatch
):
    """And two that write into one folder never run at a time."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    (job,) = expand(SweepConfig(out=str(tmp_path / "out"), checkpoints={"a": checkpoints[0]}, protocols=[QUICK]))
    parameters = {"timeout_min": 90}
    scheduler.with_name("sacct.txt").write_text("JobID|State|NodeList\n77|RUNNING|n1\n")
    slurm.run([job], tmp_path / "out", parameters, wait=False)
    other = replace(job, argv=(*job.argv, "--perturb", "fog:1"))
    with pytest.raises(UserError, match=r"slurm job 77, with another command, still writes there.*`scancel 77`"):
        slurm.run([other], tmp_path / "out", parameters, wait=False)
    scheduler.with_name("sacct.txt").write_text("JobID|State|NodeList\n77|CANCELLED|n1\n")
    submitit.SlurmJob.watcher.clear()
    slurm.run([other], tmp_path / "out", parameters, wait=False)
    assert scheduler.read_text().count("#!/bin/bash") == 2


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "no timeout_min"),
        ({"timeout_min": 5, "slurm_partiton": "short"}, "Unknown argument 'partiton'"),
        ({"timeout_min": "long"}, "expected type"),
    ],
)
def test_what_slurm_would_not_understand_is_refused(checkpoints, tmp_path, scheduler, parameters, words):
    jobs = expand(SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[QUICK]))
    with pytest.raises(UserError, match=words):
        slurm.run(jobs, tmp_path, parameters, wait=False)


def test_without_slurm_or_submitit_the_cure_is_said(checkpoints, tmp_path, monkeypatch):
    jobs = expand(SweepConfig(out=str(tmp_path), checkpoints={"a": checkpoints[0]}, protocols=[QUICK]))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `srun` here"):
        slurm.run(jobs, tmp_path, {"timeout_min": 5}, wait=False)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"la4vla\[sweep\]"):
        slurm.run(jobs, tmp_path, {"timeout_min": 5}, wait=False)
