"""The commands of `la4vla eval` that measure hierarchical policies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.hierarchy.texts import BERT_COMMAND, WORDNET_COMMAND
from la4vla.config import ConstructConfig, load
from la4vla.types import UserError

CLIPS = "a folder of clips with images (vla), best one of episodes that no run trained on"


def add(commands: Any) -> None:
    """commands: argparse's subparsers of `la4vla eval`."""
    words = commands.add_parser(
        "words", help="what a hierarchical policy says and does on held-out moments (Table 1)", allow_abbrev=False
    )
    words.add_argument("low", help="checkpoint or run of the low-level policy")
    words.add_argument("clips", type=Path, help=CLIPS)
    arm = words.add_mutually_exclusive_group(required=True)
    arm.add_argument("--high", type=Path, help="YAML file of the model that writes and how it is asked")
    arm.add_argument("--oracle", action="store_true", help="the low-level policy, told people's sentences")
    arm.add_argument("--flat", action="store_true", help="the low-level policy, told the task alone")
    words.add_argument("--out", type=Path, required=True, help="folder of words.json and words.jsonl")
    words.add_argument("--data", type=Path, help="clips that the models learned from: known words, range of actions")
    words.add_argument("--scenes", type=Path, help='JSON of what is there: {"EPISODE": ["red moon", ...]}')
    words.add_argument(
        "--scorer", default="", help="what scores words against the motion: a grounding run, `rules`, ..."
    )
    words.add_argument("--every", type=int, default=8, help="frames between two moments of a clip (default: 8)")
    words.add_argument("--steps", type=int, default=0, help="actions of a chunk that count (default: all)")
    words.add_argument("--rows", type=int, default=0, help="moments at most, evenly (default: all)")
    words.add_argument("--seed", type=int, default=0, help="of the flow's noise and of what is written")
    words.add_argument("--wordnet", type=Path, help=WORDNET_COMMAND.partition(", ")[2])
    words.add_argument("--bert", type=Path, help=BERT_COMMAND.partition(", ")[2])
    words.add_argument("--bert-layers", type=int, default=0, help="of --bert: the layer whose output is compared")
    words.add_argument("--device", default="", help="of the models (default: cuda where there is one, else cpu)")
    words.add_argument(
        "--base", default="", help="where the weights of adapters lie, if not where they lay in training"
    )
    words.set_defaults(run=_words)
    report = commands.add_parser(
        "words-report", help="Table 1 with the published rows, and Table 2's examples, as a page", allow_abbrev=False
    )
    report.add_argument(
        "folders", nargs="+", metavar="[ARM=]FOLDER", help="of `la4vla eval words`; the same ARM: seeds"
    )
    report.add_argument("--out", type=Path, required=True, help="folder of words.html and words.md")
    report.add_argument("--examples", type=int, default=12, help="moments that are shown (default: 12)")
    report.set_defaults(run=_report)

    embeddings = commands.add_parser(
        "embeddings", help="where scorers put motions and sentences, as t-SNE (Figure 5)", allow_abbrev=False
    )
    embeddings.add_argument("clips", type=Path, help=CLIPS)
    embeddings.add_argument("--scorer", action="append", required=True, help="a grounding run, clip:DIR or siglip:DIR")
    embeddings.add_argument("--out", type=Path, required=True, help="folder of embeddings.svg and embeddings.json")
    embeddings.add_argument("--rows", type=int, default=400, help="moments at most, evenly (default: 400)")
    embeddings.add_argument("--steps", type=int, default=8, help="actions of a motion (default: 8)")
    embeddings.add_argument("--view", default="", help="camera that scorers see (default: the first)")
    embeddings.add_argument("--device", default="", help="of the scorers (default: cuda where there is one, else cpu)")
    embeddings.set_defaults(run=_embeddings)
    judges = commands.add_parser(
        "judges", help="spoiled clips that the judges of a construction catch at 5 %% loss of good ones"
    )
    judges.add_argument("config", type=Path, help="a construct config; grounding.scorer names its second judge")
    judges.add_argument("--json", type=Path, help="write the numbers there as well")
    judges.add_argument("overrides", nargs="*", help="key=value changes of the config")
    judges.set_defaults(run=_judges)


def _words(options: argparse.Namespace) -> int:
    from benchmarks.hierarchy import measure

    numbers = measure.measure(
        measure.WordsRequest(
            **{
                name: value
                for name, value in vars(options).items()
                if name in measure.WordsRequest.__dataclass_fields__
            }
        )
    )
    print(measure.summary_table(numbers))
    return 0


def _report(options: argparse.Namespace) -> int:
    from benchmarks.hierarchy import report

    named = []
    for word in options.folders:
        arm, equals, folder = word.rpartition("=")
        if equals and not arm:
            raise UserError(f"`{word}`: name the arm before the equals sign, or leave both out.")
        named.append((arm or Path(folder).name, Path(folder)))
    print(f"words: {report.write(named, options.out, options.examples)}")
    return 0


def _embeddings(options: argparse.Namespace) -> int:
    from benchmarks.hierarchy import embeddings
    from benchmarks.hierarchy.moments import moments
    from la4vla.data.shards.index import read_index
    from la4vla.device import usable_device

    index = read_index(options.clips)
    views = [options.view] if options.view else list(index.views)[:1]
    chosen = moments(index, views, options.steps, options.steps, options.rows)
    deeds = [moment.deed(moment.instruction, moment.chunk) for moment in chosen]
    models = [embeddings.of_scorer(spec, deeds, str(usable_device(options.device))) for spec in options.scorer]
    numbers = embeddings.write(models, [embeddings.kind_of(spec) for spec in options.scorer], options.out)
    for name, one in numbers["models"].items():
        print(f"{name:14}mixed {one['mixed']:.2f}  gap {one['gap']:.2f}")
    for name, how in numbers["left_out"].items():
        print(f"{name:14}left out; give {how}")
    print(f"embeddings: {options.out / embeddings.FIGURE}")
    return 0


def _judges(options: argparse.Namespace) -> int:
    from benchmarks.hierarchy import judges

    config: ConstructConfig = load(options.config, options.overrides, schema=ConstructConfig)
    print(judges.table(judges.measure(config, options.json)))
    return 0
