"""Success rates and reports on the command line.

    la4vla eval metaworld --checkpoint runs/quickstart/finetune --protocol metaworld/mt50-v1 --out runs/eval
    la4vla eval metaworld ... --perturb gaussian_noise:1,3,5 --perturb fog:3
    la4vla eval metaworld --server ws://gpu-node:8000 --token-env SERVE_TOKEN --protocol ... --out ...
    la4vla eval compare runs/a/eval runs/b/eval
    la4vla eval report runs/quickstart
    la4vla eval ceiling configs/quickstart/construct.yaml
    la4vla eval retention data/texts_held_out_scenes runs/base runs/finetuned --out runs/retention
    la4vla eval credit runs/a/eval runs/b/eval
    la4vla eval latency runs/a/eval
    la4vla eval likelihood google/gemma-3-4b-it data/texts --out runs/likelihood
    la4vla eval words runs/gpla/low data/language_table/held_out/vla --high configs/gpla/high.yaml --out runs/words
    la4vla eval study configs/study/study.yaml --part paradigms_0 --hours 2

A run that was interrupted goes on where it stopped when it is started again with the same --out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.grounding import commands as commands_of_grounding
from benchmarks.hierarchy import commands as commands_of_hierarchy
from benchmarks.perturb.perturb import KNOWN, parse
from benchmarks.results import protocols
from benchmarks.writing import commands as commands_of_writing
from la4vla.config import ConstructConfig, load
from la4vla.manifest import WHICH_WEIGHTS
from la4vla.shell import exit_status
from la4vla.sim.registry import SIMULATORS
from la4vla.types import UserError

if TYPE_CHECKING:
    from benchmarks.rollouts import evaluate

MOST_WORKERS = 16  # by default; more simulators than this starve each other on one machine


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="la4vla eval", description="Success rates that can be trusted.")
    commands = top.add_subparsers(dest="command", required=True)
    for name in SIMULATORS:
        rates = commands.add_parser(name, help=f"success rates on {name}", allow_abbrev=False)
        policy = rates.add_mutually_exclusive_group(required=True)
        policy.add_argument(
            "--checkpoint", type=Path, help="a checkpoint, or a run folder (then its newest checkpoint)"
        )
        policy.add_argument("--server", metavar="URL", help="a policy that `la4vla serve` serves, ws://HOST:PORT")
        policy.add_argument("--expert", action="store_true", help="the simulator's scripted expert instead of a policy")
        rates.add_argument("--token-env", metavar="NAME", help="of --server: environment variable that has its token")
        rates.add_argument("--untrained", action="store_true", help="the checkpoint's architecture with fresh weights")
        rates.add_argument("--text", type=Path, help="of a checkpoint that writes: YAML file of how it acts")
        rates.add_argument("--high", type=Path, help="YAML file of who says the checkpoint's low-level instructions")
        rates.add_argument("--base", default="", help="where the weights of its adapters lie, if they were moved")
        rates.add_argument("--weights", choices=WHICH_WEIGHTS, default="raw", help="ema: the average of what trained")
        rates.add_argument("--protocol", required=True, help=f"one of {', '.join(protocols.titles())}, or a YAML file")
        rates.add_argument("--out", type=Path, required=True, help="result folder; the same one resumes")
        rates.add_argument("--workers", type=int, default=0, help="simulator processes (default: one a core)")
        rates.add_argument("--tasks", nargs="+", default=[], help="only these tasks")
        rates.add_argument("--episodes", type=int, help="only the first N initial states of each task")
        rates.add_argument("--videos", type=int, default=0, help="record N episodes a task afterwards")
        rates.add_argument("--device", default="", help="of the policy (default: cuda where there is one, else cpu)")
        rates.add_argument(
            "--perturb",
            action="append",
            default=[],
            metavar="NAME:SEVERITIES",
            help=f"run clean and under these, each into its folder below --out; names: {', '.join(KNOWN)}",
        )
        rates.add_argument("overrides", nargs="*", help="key=value changes of the protocol; the result is `custom`")
    paired = commands.add_parser("compare", help="two evaluations, episode by episode", allow_abbrev=False)
    paired.add_argument("a", type=Path, help="a result folder")
    paired.add_argument("b", type=Path, help="another one of the same protocol")
    paired.add_argument("--json", type=Path, help="write the numbers there as well")
    report = commands.add_parser("report", help="one HTML page of training runs and evaluations", allow_abbrev=False)
    report.add_argument("folders", nargs="+", type=Path, help="folders that hold runs or results, at any depth")
    report.add_argument("--curves", type=Path, help="success by severity as one more file, .svg or .png")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the first folder)")
    study = commands.add_parser("study", help="the paper's claims at a small scale", allow_abbrev=False)
    study.add_argument("config", type=Path, help="configs/study/study.yaml, or another one of its kind")
    study.add_argument("overrides", nargs="*", help="key=value changes of it")
    study.add_argument("--part", action="append", default=[], help="only this part; may be repeated")
    study.add_argument("--hours", type=float, default=math.inf, help="start no job that would end later")
    study.add_argument(
        "--list", "--dry-run", action="store_true", help="the jobs, which of them have rows, and expected hours"
    )
    study.add_argument("--tables", action="store_true", help="write the tables and the figure of all rows")
    ceiling = commands.add_parser(
        "ceiling", help="demonstrations told as text and played again: the most that a policy that writes can reach"
    )
    ceiling.add_argument("config", type=Path, help="a construct config whose demonstrations were recorded and filtered")
    ceiling.add_argument("--episodes", type=int, default=10, help="demonstrations of each task (default: 10)")
    ceiling.add_argument("--json", type=Path, help="write the numbers there as well")
    ceiling.add_argument("overrides", nargs="*", help="key=value changes of the config")
    commands_of_writing.add(commands)
    commands_of_hierarchy.add(commands)
    commands_of_grounding.add(commands)
    swept = commands.add_parser("sweep", help="many evaluations and one table of them", allow_abbrev=False)
    swept.add_argument("config", type=Path, help="a YAML file of benchmarks.sweep.jobs.SweepConfig")
    swept.add_argument("overrides", nargs="*", help="key=value changes of it")
    sheet = commands.add_parser("perturbations", help="one image of all perturbations", allow_abbrev=False)
    sheet.add_argument("--out", type=Path, required=True, help="the image file, .jpg or .png")
    return top


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. key=value changes may stand anywhere, behind an option of several words as well."""
    top = parser()
    options, rest = top.parse_known_args(list(arguments))
    if rest and ("overrides" not in options or any(word.startswith("-") or "=" not in word for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if "tasks" in options:
        rest += [word for word in options.tasks if "=" in word]
        options.tasks = [word for word in options.tasks if "=" not in word]
    if rest:
        options.overrides = sorted([*options.overrides, *rest], key=list(arguments).index)  # the last one wins
    return options


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    if "run" in options:
        return options.run(options)
    if options.command == "report":
        from benchmarks.report import report

        path = report.write(options.folders, options.out or options.folders[0] / "report.html", options.curves)
        print(f"report: {path}")
        return 0
    if options.command == "compare":
        from benchmarks.results import compare

        compared = compare.folders(options.a, options.b)
        print(compared.table())
        if options.json:
            options.json.write_text(compared.to_json())
        return 0
    if options.command == "study":
        return _study(options)
    if options.command == "ceiling":
        return _ceiling(options)
    if options.command == "sweep":
        from benchmarks.sweep import sweep

        return sweep.run(options.config, options.overrides)
    if options.command == "perturbations":
        from benchmarks.report import perturbation_sheet

        perturbation_sheet.write(options.out)
        return 0
    from benchmarks.rollouts import evaluate

    if options.untrained and not options.checkpoint:
        raise UserError("--untrained needs the --checkpoint whose architecture it takes, not --expert or --server.")
    chosen = options.text or options.high or options.base or options.weights != "raw"
    if chosen and (options.untrained or not options.checkpoint):
        raise UserError("--text, --high, --base and --weights are for a trained --checkpoint.")
    cores = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    request = evaluate.EvaluationRequest(
        simulator=SIMULATORS[options.command],
        protocol=protocols.load(options.protocol, options.overrides),
        checkpoint=options.checkpoint,
        untrained=options.untrained,
        out=options.out,
        workers=options.workers or cores,
        tasks=tuple(options.tasks),
        episodes=options.episodes,
        videos=options.videos,
        variants=parse(options.perturb),
        device=options.device,
        command=" ".join(["la4vla eval", *arguments]),
        server=_server(options),
        text=options.text,
        high=options.high,
        base=options.base,
        weights=options.weights,
    )
    evaluate.evaluate(request)
    return 0


def _ceiling(options: argparse.Namespace) -> int:
    from benchmarks.rollouts import ceiling

    config = load(options.config, options.overrides, schema=ConstructConfig)
    rows = ceiling.measure(config, options.episodes)
    print(ceiling.table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(ceiling.to_json(rows), indent=1) + "\n")
    return 0


def _study(options: argparse.Namespace) -> int:
    from benchmarks.study import config, run, tables

    study = config.load(options.config, options.overrides)
    if options.list:
        print(run.listing(study, options.part))
    elif options.tables:
        print(f"tables: {tables.write(study, Path(study.rows).parent)}")
    else:
        run.run(study, options.part, options.hours)
    return 0


def _server(options: argparse.Namespace) -> evaluate.ServerAddress | None:
    """--server with its token, or None without. Raises UserError for options that do not go together."""
    from benchmarks.rollouts import evaluate

    if options.server is None:
        if options.token_env:
            raise UserError("--token-env is for --server; leave it out.")
        return None
    if not options.server:
        raise UserError("--server is empty; give ws://HOST:PORT, or set the variable that should have held it.")
    if options.device:
        raise UserError("--device is chosen where the policy is served; leave it out beside --server.")
    if "@" in options.server:
        raise UserError("--server: the address would be written into the results, token and all; use --token-env.")
    if options.token_env and not os.environ.get(options.token_env):
        raise UserError(f"--token-env {options.token_env}: no such variable, or an empty one; export the token in it.")
    return evaluate.ServerAddress(options.server, os.environ[options.token_env] if options.token_env else "")


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
