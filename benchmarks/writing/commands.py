"""The commands of `la4vla eval` that measure models that write."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from la4vla.types import UserError

MODEL = "a preset, a folder of transformers, a hub id, a checkpoint or a run"
TEXTS = "a folder of conversations (la4vla construct texts)"


def add(commands: Any) -> None:
    """commands: argparse's subparsers of `la4vla eval`."""
    likely = commands.add_parser(
        "likelihood", help="log-probabilities of actions as text and as rare tokens (Figure 3)", allow_abbrev=False
    )
    likely.add_argument("model", help=MODEL)
    likely.add_argument("texts", type=Path, help=f"{TEXTS} with action texts")
    likely.add_argument("--out", type=Path, required=True, help="folder of likelihood.json and likelihood.svg")
    likely.add_argument("--rows", type=int, default=200, help="motions at most (default: 200)")
    likely.add_argument(
        "--prompts", type=int, default=32, help="questions that rare tokens are measured on (default: 32; 0: by rule)"
    )
    likely.add_argument("--device", default="", help="of the model (default: cuda where there is one, else cpu)")
    likely.set_defaults(run=_likelihood)
    kept = commands.add_parser(
        "retention", help="questions about scenes, answered before and after training", allow_abbrev=False
    )
    kept.add_argument("texts", type=Path, help=f"{TEXTS}, best one of held-out scenes")
    kept.add_argument("models", nargs="+", metavar="model", help=f"the one before first; each is {MODEL}")
    kept.add_argument("--out", type=Path, required=True, help="folder of retention.json and retention.html")
    kept.add_argument("--questions", nargs="+", default=["scene_"], help="beginnings of their types (default: scene_)")
    kept.add_argument("--rows", type=int, default=0, help="questions at most (default: all)")
    kept.add_argument("--device", default="", help="of the models (default: cuda where there is one, else cpu)")
    kept.add_argument("--base", default="", help="where the weights of adapters lie, if not where they lay in training")
    kept.set_defaults(run=_retention)
    answers = commands.add_parser(
        "answers", help="held-out questions about motion: valid texts, main direction, words", allow_abbrev=False
    )
    answers.add_argument("model", help=f"{MODEL}; a policy with actions as well")
    answers.add_argument("texts", type=Path, help=f"{TEXTS} with action texts, best one of held-out scenes")
    answers.add_argument("--out", type=Path, required=True, help="folder of answers.json")
    answers.add_argument("--rows", type=int, default=100, help="questions of each type at most (default: 100)")
    answers.add_argument("--clips", type=Path, help="of a policy with actions: the folder of its clips with images")
    answers.add_argument("--device", default="", help="of the model (default: cuda where there is one, else cpu)")
    answers.add_argument("--base", default="", help="where the weights of adapters lie, if not where they lay")
    answers.set_defaults(run=_answers)
    credit = commands.add_parser(
        "credit", help="how far episodes came, and what their plans name (D.1, D.3)", allow_abbrev=False
    )
    credit.add_argument("folders", nargs="+", type=Path, help="result folders")
    credit.add_argument("--rubric", default="simulators", help="of benchmarks/rubrics/, or a YAML file")
    credit.add_argument("--json", type=Path, help="write the numbers there as well")
    credit.set_defaults(run=_credit)
    task = commands.add_parser("vqa-task", help="questions about scenes as a task of lmms-eval", allow_abbrev=False)
    task.add_argument("texts", type=Path, help=f"{TEXTS}, best one of held-out scenes")
    task.add_argument("--out", type=Path, required=True, help="a new folder, for lmms-eval's --include_path")
    task.add_argument("--rows", type=int, default=0, help="questions at most (default: all)")
    task.set_defaults(run=_vqa_task)
    judged = commands.add_parser("vqa-results", help="whether lmms-eval ran, and its numbers", allow_abbrev=False)
    judged.add_argument("folder", type=Path, help="lmms-eval's --output_path")
    judged.add_argument("wanted", nargs="+", metavar="TASK=SAMPLES", help="that must be there; without a number: some")
    judged.set_defaults(run=_vqa_results)
    latency = commands.add_parser("latency", help="seconds a decision, as VLM2VLA's Table 3", allow_abbrev=False)
    latency.add_argument("folders", nargs="+", type=Path, help="result folders")
    latency.set_defaults(run=_latency)


def _likelihood(options: argparse.Namespace) -> int:
    from benchmarks.writing import likelihood

    request = likelihood.LikelihoodRequest(
        options.model, options.texts, options.out, options.rows, options.prompts, options.device
    )
    print(likelihood.summary_table(likelihood.measure(request)))
    print(f"likelihood: {request.out / likelihood.FIGURE}")
    return 0


def _retention(options: argparse.Namespace) -> int:
    from benchmarks.writing import retention

    request = retention.RetentionRequest(
        options.texts, options.models, options.out, options.questions, options.rows, options.device, options.base
    )
    print(retention.summary_table(retention.measure(request)))
    print(f"retention: {request.page}")
    return 0


def _credit(options: argparse.Namespace) -> int:
    from benchmarks.results import results
    from benchmarks.results.rubric import Rubric, table

    rubric = Rubric.load(options.rubric)
    found = {str(folder): rubric.summarise(results.read_rows(folder)) for folder in options.folders}
    if empty := [folder for folder, tasks in found.items() if not tasks]:
        raise UserError(
            f"{empty[0]}: no episode of a task of rubric {rubric.name} reached a milestone; evaluate again with this "
            "version, or name another --rubric."
        )
    print(table(found))
    if options.json:
        named = {folder: {task: asdict(one) for task, one in tasks.items()} for folder, tasks in found.items()}
        options.json.write_text(json.dumps({"rubric": rubric.name, "credit": named}, indent=1) + "\n")
    return 0


def _latency(options: argparse.Namespace) -> int:
    from benchmarks.results import latency, results

    found = {str(folder): latency.times(results.read_rows(folder)) for folder in options.folders}
    if empty := [folder for folder, one in found.items() if one is None]:
        raise UserError(f"{empty[0]}: no decision in it; give result folders of a policy.")
    print(latency.table({folder: one for folder, one in found.items() if one}))
    return 0


def _answers(options: argparse.Namespace) -> int:
    from benchmarks.writing import answers

    given = {name: vars(options)[name] for name in ("model", "texts", "out", "rows", "clips", "device", "base")}
    print(answers.summary_table(answers.measure(answers.AnswersRequest(**given))))
    return 0


def _vqa_task(options: argparse.Namespace) -> int:
    from benchmarks.writing import vqa

    count = vqa.write_task(options.texts, options.out, options.rows)
    print(f"task {vqa.NAME}, {count} samples: {options.out}")
    return 0


def _vqa_results(options: argparse.Namespace) -> int:
    from benchmarks.writing import vqa

    asked = {}
    for word in options.wanted:
        task, _, samples = word.partition("=")
        if samples and not samples.isdigit():
            raise UserError(f"`{word}`: give the number of samples behind the equals sign, or none.")
        asked[task] = int(samples or 0)
    for task, values in vqa.results(options.folder, asked).items():
        print(f"{task}: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}")
    return 0
