"""The commands of `la4vla eval` that measure models that write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
