"""The `la4vla` command: a thin door to the rooms. It reads the first words, imports the one room they name and hands
over.

Owns no knob and no default. A UserError of any room becomes one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from la4vla import __version__

HELP = f"""la4vla {__version__}: pretrain vision-language-action policies that follow the instruction, not the picture

  la4vla construct CONFIG [key=value ...]      demonstrations -> labelled language-action clips -> shards
  la4vla construct STEP CONFIG ...             one step: record read keyframes propose review filter shards
                                               texts report
                                               (propose --dry-run: its cost; review --serve: the page)
  la4vla data verify DIR ...                   compare shard folders with their indexes
  la4vla data stats DIR [PRESET]               what a shard folder holds
  la4vla data preview DIR [OUT.html]           one HTML page of it, with clips drawn by chance
  la4vla data chunk-stats DIR --horizon N      statistics of actions counted from a chunk's begin
  la4vla data import-conversations FILE ...    LLaVA's or ShareGPT's JSONL -> shards (`--images DIR --out DIR`)
  la4vla config CONFIG [key=value ...]         print the resolved config
  la4vla train CONFIG [key=value ...]          train in one process (more: torchrun ... -m la4vla.train)
  la4vla gpla CONFIG [key=value ...]           a hierarchical policy whose words fit its deeds: train its parts, then
                                               rounds of candidates and preferences, one HTML page
                                               (one step: `la4vla gpla STEP CONFIG`: ground high low rounds report)
  la4vla eval metaworld --checkpoint DIR ...   success rates in the simulator; `eval libero` (`la4vla eval --help`)
  la4vla eval compare A B                      two evaluations, episode by episode
  la4vla eval report DIR ...                   one HTML page of runs and evaluations
  la4vla eval ceiling CONFIG                   demonstrations told as text and played again
  la4vla eval likelihood MODEL TEXTS --out DIR log-probabilities of actions as text, before any training
  la4vla eval retention TEXTS BEFORE AFTER --out DIR
                                               questions about scenes, before and after training; one HTML page
  la4vla eval answers MODEL TEXTS --out DIR    held-out questions about motion: valid texts, main direction, words
  la4vla eval grounding CLIPS --scorer S --out DIR
                                               do scorers of words and motions tell true pairs from spoiled ones?
  la4vla eval credit DIR ...                   how far episodes came and what plans name; `eval latency DIR ...`
  la4vla eval sweep FILE                       many evaluations and one table of them, here or on SLURM
  la4vla eval study FILE                       the paper's claims at a small scale
  la4vla eval perturbations --out FILE         one image of all perturbations
  la4vla probe DIR --cases FILE                does it follow the instruction or the picture? scores, one HTML page
  la4vla probe cases SHARDS --out FILE         draw the cases, the same for every checkpoint
  la4vla serve DIR ...                         a checkpoint behind a websocket (`la4vla serve --help`)
  la4vla export DIR OUT [--base DIR]           a checkpoint as one folder, its adapters merged
  la4vla import evo1 FOLDER --out RUN          a released Evo-1 or LA4VLA checkpoint as a run of ours
  la4vla doctor [--protocol NAME] ...          whether results made here are comparable, and the cures
"""

WEIGHTS_HELP = "raw (default), or ema: the moving average of what trained"

PRESET_IN_MIND = "la4vla_1b"  # whose image tokens `data stats` counts unless told otherwise

LISTED = (
    "construct",
    "data",
    "config",
    "train",
    "gpla",
)  # their help is what HELP says of them; the others have their own

Command = Callable[[Sequence[str]], int]


def _construct(arguments: Sequence[str]) -> int:
    from la4vla.construct.__main__ import main

    return main(arguments)


def _data(arguments: Sequence[str]) -> int:
    from la4vla.types import UserError

    if arguments and arguments[0] == "import-conversations":
        return _import_conversations(arguments[1:])
    if arguments and arguments[0] == "chunk-stats":
        return _chunk_stats(arguments[1:])
    most = {"verify": len(arguments), "stats": 3, "preview": 3}
    if len(arguments) < 2 or len(arguments) > most.get(arguments[0], 0):
        raise UserError(
            "say `la4vla data verify DIR ...`, `data stats DIR [PRESET]`, `data preview DIR [OUT.html]`, `data "
            "chunk-stats DIR --horizon N` or `data import-conversations FILE --images DIR --out DIR`, no more."
        )
    if arguments[0] == "verify":
        from la4vla.data.inspect.verify import verify

        whole = True
        for folder in arguments[1:]:
            report = verify(folder)
            print(report.text())
            whole = whole and report.ok
        return 0 if whole else 1
    if arguments[0] == "preview":
        from la4vla.data.inspect.preview import preview

        print(f"preview: {preview(*arguments[1:])}")
        return 0
    from la4vla.data.inspect.describe import describe, estimated_tokens
    from la4vla.model.presets import preset

    size = preset(arguments[2] if len(arguments) > 2 else PRESET_IN_MIND)
    print(describe(arguments[1], size.image_tokens, estimated_tokens))
    return 0


def _chunk_stats(arguments: Sequence[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser("la4vla data chunk-stats")
    parser.add_argument("folder", help="a local folder of clips")
    parser.add_argument("--horizon", type=int, required=True, help="steps of a chunk, as model.horizon")
    given = parser.parse_args(arguments)
    from la4vla.data.inspect.chunk_stats import add_chunk_stats

    names = add_chunk_stats(given.folder, given.horizon)
    print(f"{given.folder}: statistics of {', '.join(names)} added to stats.json")
    return 0


def _import_conversations(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser("la4vla data import-conversations", argument_default=argparse.SUPPRESS)
    parser.add_argument("file", type=Path, help="JSONL of LLaVA or ShareGPT rows, or one JSON list of them")
    parser.add_argument("--images", type=Path, default=Path(), help="folder that image paths start from, here if none")
    parser.add_argument("--out", type=Path, required=True, help="the shard folder to write")
    parser.add_argument("--shards", type=int, default=32, help="tars, at least data.streams; 32 unless given")
    parser.add_argument("--question", default="", help="name of the type of questions, the file's unless given")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace the folder if there is one")
    given = vars(parser.parse_args(arguments))
    from la4vla.data.imported import import_conversations

    index = import_conversations(**given)
    print(f"{index.location}: {index.clips:,} conversations in {len(index.shards)} shards")
    return 0


def _config(arguments: Sequence[str]) -> int:
    from la4vla.config.__main__ import main

    return main(arguments)


def _train(arguments: Sequence[str]) -> int:
    from la4vla.train.__main__ import main

    return main(arguments)


def _gpla(arguments: Sequence[str]) -> int:
    from la4vla.gpla.__main__ import main

    return main(arguments)


def _evaluate(arguments: Sequence[str]) -> int:
    from benchmarks.__main__ import main

    return main(arguments)


def _probe(arguments: Sequence[str]) -> int:
    return _probe_cases(arguments[1:]) if arguments and arguments[0] == "cases" else _probe_policy(arguments)


def _probe_cases(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser("la4vla probe cases", argument_default=argparse.SUPPRESS)
    parser.add_argument("shards", help="a shard folder with images")
    parser.add_argument("--out", type=Path, required=True, help="JSONL")
    parser.add_argument("--count", type=int, help="cases a condition, 100 unless given")
    parser.add_argument("--seed", type=int, help="of the choice, 0 unless given")
    parser.add_argument(
        "--purity", type=float, help="cosine of motion and direction that a clip needs, 0.9 unless given"
    )
    parser.add_argument("--robot", help="robot file, for a robot that is not among ours")
    parser.add_argument("--one-sided", action="store_true", help="take axes that show only one direction")
    given = vars(parser.parse_args(arguments))
    shards, out = given.pop("shards"), given.pop("out")
    from la4vla.probe.build import CaseSampling, sample_cases, summary

    listed = sample_cases(shards, CaseSampling(**given))
    listed.write(out)
    print(f"{summary(listed)}\ncases: {out}")
    return 0


def _probe_policy(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    from la4vla.manifest import WHICH_WEIGHTS

    parser = argparse.ArgumentParser("la4vla probe", argument_default=argparse.SUPPRESS)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run (then its newest one)")
    parser.add_argument("--cases", type=Path, required=True, help="made by `la4vla probe cases`")
    parser.add_argument("--out", type=Path, help="folder of probe.json and probe.html; DIR/probe unless given")
    parser.add_argument("--shards", help="where the cases' shard folder lies, if not where they were drawn")
    parser.add_argument("--conditions", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--states", type=int, help="of the representation, 200 unless given; 0 leaves it out")
    parser.add_argument("--samples", type=int, help="chunks a case, 1 unless given")
    parser.add_argument(
        "--whole-chunk", action="store_true", help="count the predicted chunk beyond the clip's end too"
    )
    parser.add_argument("--base", help="where the weights of its adapters lie, if not where they lay in training")
    parser.add_argument("--weights", choices=WHICH_WEIGHTS, help=WEIGHTS_HELP)
    parser.add_argument("--untrained", action="store_true", help="the checkpoint's architecture with random weights")
    parser.add_argument("--seed", type=int, help="of noise, intervals and t-SNE, 0 unless given")
    parser.add_argument("--device", help="the best there is unless given")
    given = vars(parser.parse_args(arguments))
    from la4vla.probe.run import ProbeRequest, QuerySettings, probe, summary_table

    settings = QuerySettings(**{name: given.pop(name) for name in ("samples", "whole_chunk", "seed") if name in given})
    request = ProbeRequest(**{"out": given["checkpoint"] / "probe", **given}, settings=settings)
    print(f"{summary_table(probe(request))}\nprobe: {request.page}")
    return 0


def _serve(arguments: Sequence[str]) -> int:
    import argparse
    import os
    from pathlib import Path

    from la4vla.manifest import WHICH_WEIGHTS
    from la4vla.types import UserError

    parser = argparse.ArgumentParser("la4vla serve", argument_default=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, help="a checkpoint, or a run (then its newest one)")
    parser.add_argument("--base", help="where the weights of its adapters lie, if not where they lay in training")
    parser.add_argument("--weights", choices=WHICH_WEIGHTS, help=WEIGHTS_HELP)
    parser.add_argument("--text", type=Path, help="of a model that writes: YAML file of how it acts")
    parser.add_argument("--high", type=Path, help="of a policy: YAML file of who says its low-level instructions")
    parser.add_argument("--embodiment", metavar="NAME", help="of a policy that knows several robots: the one it drives")
    parser.add_argument("--dialect", help="la4vla (default), openpi or evo1")
    parser.add_argument("--host", help="127.0.0.1 unless given; elsewhere clients need a token")
    parser.add_argument("--port", type=int, help="0 for any free one")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token", help="asked of every client; others on this machine can read it in `ps`")
    token.add_argument("--token-env", metavar="NAME", help="environment variable that has the token")
    parser.add_argument("--seed", type=int, help="of the noise of clients that send none")
    parser.add_argument("--device", help="the best there is unless given")
    parser.add_argument("--max-batch", type=int, help="chunks computed together at most")
    parser.add_argument("--strict", action="store_true", help="refuse states and images unlike the training data's")
    parser.add_argument("--max-bytes", type=int, help="size of a message at most; two 1080p images take 12.5 million")
    origin = "that requests may name, as programs made of web pages do; may be repeated"
    parser.add_argument("--allow-origin", action="append", dest="allow_origins", metavar="ORIGIN", help=origin)
    parser.add_argument("--view", action="append", dest="views", metavar="KEY=VIEW", help="openpi, evo1: client's key")
    parser.add_argument("--libero-client", action="store_true", help="openpi, evo1: translate their LIBERO clients")
    parser.add_argument("--state", metavar="KEY,KEY", help="openpi: client's keys of the state's parts, in order")
    parser.add_argument("--prompt", metavar="TEXT", help="openpi: the instruction of messages that have none")
    parser.add_argument("--channels", choices=("bgr", "rgb"), help="evo1: order in the client's images")
    parser.add_argument("--gripper", choices=("raw", "opening"), help="evo1: as trained, or 1 = open and 0 = closed")
    parser.add_argument("--trim-state", action="store_true", help="evo1: ignore the end of a state that is too long")
    given = vars(parser.parse_args(arguments))
    if "token_env" in given:
        name = given.pop("token_env")
        given["token"] = os.environ.get(name, "")
        if not given["token"]:
            raise UserError(f"--token-env {name}: no such variable, or an empty one; export the token in it.")
    if given.get("token") == "":
        raise UserError("--token is empty; leave it out to serve this machine without one, or give one.")
    openpi = {name: given.pop(name) for name in ("state", "prompt") if name in given}
    evo1 = {name: given.pop(name) for name in ("channels", "gripper", "trim_state") if name in given}
    try:
        from la4vla.serve.server import Settings, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("msgpack", "websockets"):
            raise
        raise UserError('serving needs msgpack and websockets: pip install "la4vla[serve]".') from error
    return serve(Settings(**given, openpi=openpi, evo1=evo1))


def _export(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    from la4vla.manifest import WHICH_WEIGHTS

    parser = argparse.ArgumentParser("la4vla export", argument_default=argparse.SUPPRESS)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run (then its newest one)")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--base", help="where the weights of its adapters lie, if not where they lay in training")
    parser.add_argument("--weights", choices=WHICH_WEIGHTS, help=WEIGHTS_HELP)
    parser.add_argument("--layout", choices=("evo1",), help="of an imported checkpoint: write it back as it came")
    given = vars(parser.parse_args(arguments))
    if "layout" in given:
        from la4vla.released.evo1 import write_back

        print(f"export: {write_back(given['checkpoint'], given['out'])}")
        return 0
    from la4vla.export import export

    print(f"export: {export(**given)}")
    return 0


def _import(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser("la4vla import", argument_default=argparse.SUPPRESS)
    parser.add_argument("layout", choices=("evo1",), help="whose layout: that of Evo-1 and LA4VLA")
    parser.add_argument("folder", type=Path, help="config.json, norm_stats.json, mp_rank_00_model_states.pt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, which does not exist yet")
    parser.add_argument("--release", help="code that trained it: evo1 (unless given), evo1_flash or la4vla")
    parser.add_argument("--context", help="its attention in training: flash (unless given) or eager")
    parser.add_argument("--robot", help="metaworld, libero or a YAML file; by the size of the statistics unless given")
    parser.add_argument("--views", nargs="+", metavar="VIEW", help="names of the image slots, in order")
    parser.add_argument("--stats", metavar="ARM/DATASET", help="in norm_stats.json, where there are several")
    parser.add_argument("--normalization", help="bounds (unless given), bounds_q99 or normal")
    parser.add_argument("--tokenizer", help="folder or hub id of the released tokenizer as tokenizer.json")
    parser.add_argument("--preset", help="sizes, la4vla_1b unless given")
    given = vars(parser.parse_args(arguments))
    given.pop("layout")
    if "views" in given:
        given["views"] = tuple(given["views"])
    from la4vla.released.evo1 import ImportRequest, import_evo1

    print(f"import: {import_evo1(ImportRequest(**given))}")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    from la4vla.doctor import Demand, doctor, summary_table, to_json, verdict
    from la4vla.sim.registry import Setting

    parser = argparse.ArgumentParser("la4vla doctor")
    parser.add_argument("--protocol", help="judge this machine for one protocol, such as metaworld/mt50-v1")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint, or a run (then its newest one)")
    parser.add_argument("--data", action="append", default=[], metavar="DIR", help="a shard folder; may be repeated")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="references of your own instead of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the checks and the verdict there, too")
    given = parser.parse_args(arguments)
    demand = None
    if given.protocol:
        from benchmarks.results import protocols

        protocol = protocols.load(given.protocol)
        setting = Setting(tuple(protocol.views), protocol.image_size, protocol.fast)
        demand = Demand(protocol.title, protocol.suite, setting)
    checks = doctor(demand, given.checkpoint, given.data, given.golden)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(to_json(checks))
    print(summary_table(checks), verdict(checks), sep="\n")
    return 0 if verdict(checks).startswith("comparable: yes") else 1


COMMANDS: dict[str, Command] = {
    "construct": _construct,
    "data": _data,
    "config": _config,
    "train": _train,
    "gpla": _gpla,
    "eval": _evaluate,
    "probe": _probe,
    "serve": _serve,
    "export": _export,
    "import": _import,
    "doctor": _doctor,
}


def _help_of(command: str) -> str:
    """The lines of HELP that are about one command, with those that go on below them."""
    lines, about = [], False
    for line in HELP.splitlines():
        if line.startswith("  la4vla"):
            about = line.split()[1] == command
        if about:
            lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 done, 1 the data is not what its index says, 2 bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        print(f"error: `{words[0]}` is not a command; `la4vla --help` lists them.", file=sys.stderr)
        return 2
    if words[0] in LISTED and {"-h", "--help"} & set(words[1:]):
        print(_help_of(words[0]))
        return 0
    from la4vla.shell import exit_status

    return exit_status(COMMANDS[words[0]], words[1:])


if __name__ == "__main__":
    sys.exit(main())
