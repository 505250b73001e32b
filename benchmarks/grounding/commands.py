"""The command of `la4vla eval` that measures scorers of words and motions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """commands: argparse's subparsers of `la4vla eval`."""
    asked = commands.add_parser(
        "grounding", help="what scorers of words and motions know: retrieval, and spoiled pairs", allow_abbrev=False
    )
    asked.add_argument("clips", type=Path, help="a folder of clips with images, best one of held-out episodes")
    asked.add_argument(
        "--scorer",
        action="append",
        dest="scorers",
        required=True,
        metavar="[NAME=]SCORER",
        help="a grounding run or checkpoint, action_only:RUN, clip:FOLDER, siglip:FOLDER, or rules; may be repeated",
    )
    asked.add_argument("--out", type=Path, required=True, help="folder of grounding.json, grounding.md, grounding.svg")
    asked.add_argument("--deeds", type=int, default=200, help="clips at most, evenly (default: 200; 0: all)")
    asked.add_argument("--view", default="", help="in which scenes are seen, where the folder has more than one")
    asked.add_argument("--robot", default="", help="robot file of `rules`, for a robot that is not among ours")
    asked.add_argument("--seed", type=int, default=0, help="of what spoiled pairs get (default: 0)")
    asked.add_argument("--device", default="", help="of the models (default: cuda where there is one, else cpu)")
    asked.set_defaults(run=_grounding)


def _grounding(options: argparse.Namespace) -> int:
    from benchmarks.grounding import measure

    names = ("clips", "scorers", "out", "deeds", "view", "robot", "seed", "device")
    request = measure.GroundingRequest(**{name: vars(options)[name] for name in names})
    print(measure.table(measure.measure(request)))
    print(f"grounding: {request.out / measure.FIGURE}")
    return 0
