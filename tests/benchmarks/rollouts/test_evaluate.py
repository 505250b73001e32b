"""Why: the whole path from a checkpoint folder to a table and a page, with real workers and a real tiny policy on a
fake simulator; interrupted and resumed, trained and untrained, blind and seeing."""

import base64
import csv
import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.perturb import perturb
from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.report import report
from benchmarks.results import results
from benchmarks.rollouts import evaluate, runner, video
from benchmarks.rollouts.evaluate import EvaluationRequest
from la4vla import manifest
from la4vla.shell import exit_status
from la4vla.types import UserError
from tests.benchmarks.fake_env import EMBODIMENT, POINT, protocol
from tests.hand_checkpoint import write_average, write_checkpoint

pytestmark = pytest.mark.slow
RULES = protocol(episodes=2, horizon=12, replan_every=4)
CHANGING = ("wall_s", "seconds", "latencies_ms", "final_state")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def request_(place):
    checkpoint = write_checkpoint(place / "run" / "checkpoints" / "step_00000007", EMBODIMENT, ("eye",))
    return EvaluationRequest(
        simulator=POINT, protocol=RULES, checkpoint=checkpoint, untrained=False, out=place / "eval" / "trained",
        workers=2, tasks=(), episodes=None, videos=1, device="cpu", command="la4vla eval point", variants=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(request_):
    return evaluate.evaluate(request_)[CLEAN]


def stable(rows):
    return {key: replace(row, **dict.fromkeys(CHANGING)) for key, row in rows.items()}


def test_every_episode_has_a_row_that_says_all(finished, request_):
    rows = results.read_rows(request_.out)
    assert sorted((row.task, row.episode) for row in rows) == [(t, e) for t in sorted(RULES.tasks) for e in (0, 1)]
    assert finished.micro.n == 6 and not finished.errors
    for row in rows:
        assert row.protocol == "point/test-v1" and row.protocol_hash == RULES.hash
        assert len(row.policy) == 64 and row.step == 7 and row.gl == "none" and row.queries == -(-row.steps // 4)
        assert {"numpy", "la4vla", "torch"} <= set(row.versions)
        assert row.wall_s > 0 and len(row.latencies_ms) == row.queries and min(row.latencies_ms) > 0
        assert row.perturbation == "clean" and set(row.seconds) == {"reset", "physics", "render", "policy"}
    run = results.read_run(request_.out)
    assert run["title"] == "point/test-v1" and "6 episodes in" in run["time"]


def test_a_row_says_that_the_average_acted(request_, tmp_path):
    checkpoint = write_average(shutil.copytree(request_.checkpoint, tmp_path / "averaged"), seed=1)
    asked = replace(request_, checkpoint=checkpoint, weights="ema", out=tmp_path / "eval", workers=1, videos=0)
    evaluate.evaluate(replace(asked, tasks=("easy-a",), episodes=1))
    (row,) = results.read_rows(tmp_path / "eval")
    run = results.read_run(tmp_path / "eval")
    assert row.policy == run["policy"] == f"ema-{manifest.read(checkpoint).ema_sha256}" and run["weights"] == "ema"
    with pytest.raises(UserError, match="another"):
        evaluate.evaluate(replace(asked, weights="raw"))


def test_a_killed_evaluation_goes_on_and_ends_the_same(finished, request_, place):
    whole = (request_.out / results.EPISODES).read_text()
    lines = whole.splitlines(keepends=True)
    resumed = place / "resumed"
    resumed.mkdir()
    shutil.copy(request_.out / results.RUN, resumed)
    (resumed / results.EPISODES).write_text("".join(lines[:3]) + lines[3][:50])
    evaluate.evaluate(replace(request_, out=resumed, workers=1, videos=0))
    text = (resumed / results.EPISODES).read_text()
    assert text.startswith("".join(lines[:3])) and text.count("\n") == 6
    first, second = keyed(request_.out), keyed(resumed)
    assert stable(first) == stable(second)
    for key, row in first.items():  # to fp32 rounding: the batches were others
        assert second[key].final_state == pytest.approx(row.final_state, abs=1e-4)


def test_old_crashes_do_not_end_an_evaluation_that_has_outcomes(request_, tmp_path, monkeypatch):
    """Every resume runs them first."""
    monkeypatch.setattr(runner, "HOPELESS", 1)
    rules = protocol(groups={"easy": ["crash-x"], "hard": ["easy-a"]}, episodes=1)
    asked = replace(request_, protocol=rules, out=tmp_path, workers=1, videos=0)
    evaluate.evaluate(replace(asked, tasks=("easy-a",)))
    summary = evaluate.evaluate(asked)[CLEAN]
    assert summary.micro.n == 1 and [row.task for row in summary.errors] == ["crash-x"]


def test_going_on_with_another_simulator_or_backend_is_said(finished, request_, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(runner.Runner, "_start")
    shutil.copytree(request_.out, tmp_path, dirs_exist_ok=True)
    same = replace(request_, out=tmp_path, videos=0)
    evaluate.evaluate(same)
    assert "so far" not in capsys.readouterr().err
    rows = (tmp_path / results.EPISODES).read_text()
    older = json.loads(rows.splitlines()[0])["versions"]["numpy"]
    changed = rows.replace(f'"numpy": "{older}"', '"numpy": "1.0"').replace('"gl": "none"', '"gl": "egl:1"', 1)
    (tmp_path / results.EPISODES).write_text(changed)
    evaluate.evaluate(same)
    said = capsys.readouterr().err
    assert f"numpy 1.0 so far, {older} from now on" in said
    assert "images were rendered by egl and none so far, none from now on" in said


def keyed(folder):
    return {(row.task, row.episode): row for row in results.read_rows(folder)}


def test_a_finished_evaluation_starts_no_worker_again(finished, request_, monkeypatch, capsys):
    before = [(request_.out / name).read_text() for name in (results.EPISODES, results.RUN)]
    monkeypatch.delattr(runner.Runner, "_start")
    evaluate.evaluate(replace(request_, command="another command, which ran none of them"))
    assert [(request_.out / name).read_text() for name in (results.EPISODES, results.RUN)] == before
    assert "6 episodes in" in results.read_run(request_.out)["time"]
    assert "6 already there" in capsys.readouterr().out


def test_videos_of_counted_episodes_decode(finished, request_):
    paths = sorted((request_.out / "videos").glob("*.mp4"))
    rows = {(row.task, row.episode): row for row in results.read_rows(request_.out)}
    assert len(paths) == len(RULES.tasks)
    for path in paths:
        match = report.VIDEO_NAME.fullmatch(path.name)
        row = rows[match["task"], int(match["episode"])]
        assert (match["outcome"] == "success") is row.success
        assert len(video.read(path)) == -(-row.steps // 4) + 1


def test_the_page_holds_the_numbers_and_the_videos_and_needs_nothing_else(finished, request_, place, tmp_path):
    evaluate.evaluate(replace(request_, untrained=True, out=place / "eval" / "untrained", videos=0))
    with pytest.raises(UserError, match=r"another --out"):
        evaluate.evaluate(replace(request_, untrained=True))
    run = place / "run"
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "stage": "pretrain", "loss": 1.25, "loss/la": 1.5, "loss/vla": null, "lr": 1e-5, "grad_norm": 2, '
        '"samples_per_s": 40, "data_wait_ratio": 0.01}\n'
        '{"step": 20, "stage": "finetune", "loss": 0.75, "loss/la": null, "loss/vla": 0.5, "lr": 2e-5, "grad_norm": 1, '
        '"samples_per_s": 60, "data_wait_ratio": 0.03}\n{"step": 3'
    )
    (run / "config.yaml").write_text("model: {preset: tiny}\ndata: {sources: {gone: {path: /nowhere, kind: la}}}\n")
    page = report.write([run, place / "eval"], tmp_path / "page.html").read_text()
    rates = finished.micro
    assert f"{rates.successes} of {rates.n} episodes [{100 * rates.low:.1f}, {100 * rates.high:.1f}]" in page
    for text in ("point/test-v1", RULES.hash, "untrained", "All columns ran the same initial states", "preset: tiny"):
        assert text in page
    assert "Fewer than 50 episodes a task" in page and "final loss 1" in page and "samples a second 50" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import""", page), "the page fetches something"
    embedded = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert len(embedded) == len(RULES.tasks)
    for number, content in enumerate(embedded):
        clip = tmp_path / f"{number}.mp4"
        clip.write_bytes(base64.b64decode(content))
        assert video.read(clip)[0].shape == (16, 16, 3)
    (image,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert b"<svg" in base64.b64decode(image)


def test_a_policy_without_views_renders_nothing(request_, place):
    blind = write_checkpoint(place / "blind", EMBODIMENT, ())
    asked = replace(request_, checkpoint=blind, out=place / "of_blind", videos=0, tasks=("hard-c",), episodes=1)
    assert evaluate.evaluate(replace(asked, workers=1))[CLEAN].micro.n == 1
    with pytest.raises(UserError, match=r"--perturb fog: would not reach this policy"):
        evaluate.evaluate(replace(asked, variants=(Variant("fog", 1),)))


@pytest.fixture(scope="module")
def perturbed(finished, request_, place):
    """The same policy clean and under three perturbations, into a folder of their own."""
    variants = perturb.parse(["gaussian_noise:5,1", "view_dropout:5"])
    asked = replace(request_, out=place / "perturbed", variants=variants, videos=0)
    return asked, evaluate.evaluate(asked)


def test_perturbed_conditions_come_with_their_clean_one_on_the_same_states(perturbed, request_):
    asked, summaries = perturbed
    names = ["clean", "gaussian_noise_5", "gaussian_noise_1", "view_dropout_5"]
    assert [variant.folder for variant in summaries] == names
    states = {name: sorted(keyed(asked.out / name)) for name in names}
    assert set(map(tuple, states.values())) == {tuple(sorted(keyed(request_.out)))}
    assert stable(keyed(asked.out / "clean")) == stable(keyed(request_.out)), (
        "the clean condition is the plain evaluation"
    )
    for variant in summaries:
        assert {row.perturbation for row in results.read_rows(asked.out / variant.folder)} == {variant.identity}
        assert results.read_run(asked.out / variant.folder)["perturbation"]["name"] == variant.name
    ends = [[row.final_state for _, row in sorted(keyed(asked.out / name).items())] for name in names]
    assert all(end != ends[0] for end in ends[1:]), "the policy never saw the perturbation"


def test_perturbed_conditions_resume_and_take_others_in(perturbed, monkeypatch, capsys):
    asked, _ = perturbed
    monkeypatch.delattr(runner.Runner, "_start")
    assert list(evaluate.evaluate(replace(asked, variants=asked.variants[:1]))) == [CLEAN, asked.variants[0]]
    printed = capsys.readouterr().out
    assert printed.count("6 already there") == 2 and "minus clean" in printed


def test_a_folder_of_one_evaluation_takes_no_perturbation(request_, perturbed, finished):
    with pytest.raises(UserError, match=r"is itself the folder of one evaluation; give --perturb another --out"):
        evaluate.evaluate(replace(request_, variants=(Variant("fog", 1),)))
    with pytest.raises(UserError, match=r"gaussian_noise:5=50; give this evaluation another --out"):
        evaluate.evaluate(replace(request_, out=perturbed[0].out / "gaussian_noise_5"))
    with pytest.raises(
        UserError, match=r"holds the conditions of a perturbed evaluation; --out .*perturbed/clean goes on"
    ):
        evaluate.evaluate(replace(request_, out=perturbed[0].out))


def test_the_page_shows_success_by_severity(perturbed, tmp_path):
    folder = perturbed[0].out
    page = report.write([folder], tmp_path / "page.html", tmp_path / "curves.svg").read_text()
    for text in ("Under perturbation", "gaussian_noise:1", "view_dropout:5", "minus clean", "action latency", "p99"):
        assert text in page
    assert page.count('class="tile"') == 1, "only the clean condition has a tile"
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import""", page), "the page fetches something"
    assert b"<svg" in (tmp_path / "curves.svg").read_bytes()
    report.write([folder], tmp_path / "page.html", tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
    with pytest.raises(UserError, match=r"written as .svg or .png"):
        report.write([folder], tmp_path / "page.html", tmp_path / "curves.pdf")
    with pytest.raises(UserError, match=r"no perturbed evaluation here"):
        report.write([folder / "clean"], tmp_path / "page.html", tmp_path / "curves.svg")


def test_evaluations_of_several_folders_keep_names_of_their_own(perturbed, tmp_path):
    """Two sweeps have a `clean` each; under one name their curves and numbers could not be told apart."""
    tops = [tmp_path / "a", tmp_path / "b"]
    for top in tops:
        shutil.copytree(perturbed[0].out, top)
    for path in tops[1].rglob("*.json*"):
        path.write_text(path.read_text().replace(policy_of(perturbed[0].out), "f" * 64))
    report.write([*tops, tops[0] / "clean"], tmp_path / "page.html", tmp_path / "curves.svg")
    names = [line["evaluation"] for line in csv.DictReader((tmp_path / "page.csv").open())]
    assert {str(top / "clean") for top in tops} < set(names) and "clean" not in names
    assert str(tops[1]) in (tmp_path / "curves.svg").read_text(), "a legend tells the two apart"


def policy_of(folder):
    return results.read_run(folder / "clean")["policy"]


def test_the_numbers_lie_beside_the_page(perturbed, tmp_path):
    request, summaries = perturbed
    report.write([request.out], tmp_path / "page.html")
    evaluations = {item["evaluation"]: item for item in json.loads((tmp_path / "page.json").read_text())["evaluations"]}
    lines = list(csv.DictReader((tmp_path / "page.csv").open()))
    for variant, summary in summaries.items():
        item = evaluations[variant.folder]
        assert (item["perturbation"], item["run"]["title"]) == (variant.identity, RULES.title)
        assert item["latency_ms"] == summary.latency_ms
        mine = {(line["level"], line["of"]): line for line in lines if line["evaluation"] == variant.folder}
        assert len(mine) == len(RULES.tasks) + len(RULES.groups) + 2
        for key, rate in {
            ("micro", ""): summary.micro,
            ("task", RULES.tasks[0]): summary.tasks[RULES.tasks[0]],
        }.items():
            found = [float(mine[key][name]) for name in ("successes", "n", "rate", "low", "high")]
            assert found == [rate.successes, rate.n, rate.value, rate.low, rate.high]
    with pytest.raises(UserError, match=r"end it in \.html"):
        report.write([request.out], tmp_path / "page.csv")


def test_untrained_and_videos_in_turn(finished, request_, tmp_path):
    (row, *_) = results.read_rows(request_.out)
    rows = [replace(row, episode=e, success=s) for e, s in enumerate([True, True, None, False, True])]
    jobs = evaluate.video_jobs(rows, tmp_path, 3, CLEAN)
    assert [job.episode for job in jobs] == [0, 3, 1]
    (tmp_path / evaluate.video_name(rows[0])).touch()
    assert [job.episode for job in evaluate.video_jobs(rows, tmp_path, 3, CLEAN)] == [3, 1]
    assert evaluate.video_jobs(rows, tmp_path, 0, CLEAN) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": protocol(suite="metaworld")}, r"is for `metaworld`, not for `point`"),
        ({"workers": 0}, r"--workers must be at least 1"),
        ({"protocol": protocol(views=["nose"])}, r"view `nose` is not a camera of point; use eye, ear"),
        ({"protocol": protocol(groups={"easy": ["hard-c", "hard-d"]})}, r"`hard-d` is not a task of point; names"),
        (
            {"protocol": protocol(horizon=95, wait_steps=6)},
            r"horizon is 95 and wait_steps is 6; lower .* 100 ",
        ),
        ({"protocol": protocol(wait_action=[0.0, 1.0])}, r"wait_action has 2 numbers; give 1, or none"),
        ({"device": "gpu"}, r"--device gpu: torch has no such device here; choose cpu"),
        ({"device": "cuda:99"}, r"--device cuda:99: torch has no such device here; choose cpu"),
        ({"protocol": protocol(views=["ear"])}, r"trained with the view `eye`, the env shows ear"),
    ],
)
def test_requests_that_cannot_be_run_say_the_cure_before_any_worker_starts(
    request_, tmp_path, changes, message, monkeypatch
):
    monkeypatch.delattr(runner.Runner, "_start")
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(replace(request_, out=tmp_path, tasks=("hard-c",), episodes=1, **{"workers": 1, **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("horizon=501", "horizon is 501 and wait_steps is 0; lower them, metaworld allows 500 steps"),
        ("views=[corner4,agentview]", "view `agentview` is not a camera of metaworld; use corner, corner2"),
        ("groups={easy: [reach-v9]}", "`reach-v9` is not a task of metaworld; names look like `drawer-open-v3`"),
    ],
)
def test_the_command_refuses_what_no_worker_can_serve(tmp_path, monkeypatch, capsys, change, message):
    """Before anything is made: no GL backend is probed and no folder written."""
    monkeypatch.setattr("la4vla.sim.render.why_not", lambda name: pytest.fail("a GL backend was probed"))
    words = ["metaworld", "--expert", "--protocol", "metaworld/quickstart-v1", "--out", str(tmp_path / "out"), change]
    assert exit_status(command.main, words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_policy_whose_chunks_are_shorter_than_replan_every_is_evaluated_and_it_is_said(request_, tmp_path, capsys):
    """Its chunks have 16 actions: both protocols execute all of them, and query it equally often."""
    ends = {}
    for replan_every in (16, 17):
        rules, out = protocol(replan_every=replan_every, horizon=40), tmp_path / str(replan_every)
        asked = replace(request_, protocol=rules, out=out, tasks=("hard-c",), episodes=1, workers=1, videos=0)
        evaluate.evaluate(asked)
        ends[replan_every] = [(row.steps, row.queries, row.final_state) for row in results.read_rows(out)]
        shorter = "chunks were shorter than replan_every and executed whole"
        assert (shorter in capsys.readouterr().out) is (shorter in results.read_run(out)["time"]) is (replan_every > 16)
    assert ends[16] == ends[17]


def test_an_empty_folder_makes_no_page(tmp_path):
    with pytest.raises(UserError, match=r"holds neither"):
        report.write([tmp_path], tmp_path / "page.html")
    with pytest.raises(UserError, match=r"no such folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "page.html")


def test_a_video_keeps_its_frames_in_order(tmp_path):
    frames = [np.full((16, 32, 3), 8 * number, np.uint8) for number in range(9)]
    video.write(tmp_path / "v.mp4", frames, 20.0)
    back = video.read(tmp_path / "v.mp4")
    assert len(back) == 9 and all(abs(int(b.mean()) - 8 * n) < 6 for n, b in enumerate(back))
