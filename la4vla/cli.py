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
  la4vla construct STEP CONFIG ...             one step: record read keyframes propose review filter shards report
                                               (propose --dry-run: its cost; review --serve: the page)
  la4vla data verify DIR                       compare a shard folder with its index
  la4vla data stats DIR [PRESET]               what a shard folder holds
  la4vla data preview DIR [OUT.html]           one HTML page of it, with clips drawn by chance
  la4vla config CONFIG [key=value ...]         print the resolved config
  la4vla train CONFIG [key=value ...]          train in one process (more: torchrun ... -m la4vla.train)
  la4vla eval metaworld --checkpoint DIR ...   success rates in the simulator (`la4vla eval --help`)
  la4vla eval compare A B                      two evaluations, episode by episode
  la4vla eval report DIR ...                   one HTML page of runs and evaluations
  la4vla serve DIR ...                         a checkpoint behind a websocket (`la4vla serve --help`)
  la4vla doctor [--checkpoint DIR] [--data DIR]   whether results made here are comparable, and the cures
"""

PRESET_IN_MIND = "la4vla_1b"  # whose image tokens `data stats` counts unless told otherwise

Command = Callable[[Sequence[str]], int]


def _construct(arguments: Sequence[str]) -> int:
    from la4vla.construct.__main__ import main

    return main(arguments)


def _data(arguments: Sequence[str]) -> int:
    from la4vla.types import UserError

    if len(arguments) < 2 or arguments[0] not in ("verify", "stats", "preview"):
        raise UserError("say `la4vla data verify DIR`, `data stats DIR [PRESET]` or `data preview DIR [OUT.html]`.")
    if arguments[0] == "verify":
        from la4vla.data.verify import verify

        report = verify(arguments[1])
        print(report.text())
        return 0 if report.ok else 1
    if arguments[0] == "preview":
        from la4vla.data.preview import preview

        print(f"preview: {preview(*arguments[1:3])}")
        return 0
    from la4vla.data.describe import describe, estimated_tokens
    from la4vla.model.presets import preset

    size = preset(arguments[2] if len(arguments) > 2 else PRESET_IN_MIND)
    print(describe(arguments[1], size.image_tokens, estimated_tokens))
    return 0


def _config(arguments: Sequence[str]) -> int:
    from la4vla.config.__main__ import main

    return main(arguments)


def _train(arguments: Sequence[str]) -> int:
    from la4vla.train.__main__ import main

    return main(arguments)


def _evaluate(arguments: Sequence[str]) -> int:
    from benchmarks.__main__ import main

    return main(arguments)


def _serve(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    from la4vla.types import UserError

    parser = argparse.ArgumentParser("la4vla serve", argument_default=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, help="a checkpoint, or a run (then its newest one)")
    parser.add_argument("--dialect", help="la4vla (default), openpi or evo1")
    parser.add_argument("--host", help="127.0.0.1 unless given; elsewhere clients need a token")
    parser.add_argument("--port", type=int, help="0 for any free one")
    parser.add_argument("--token", help="asked of every client")
    parser.add_argument("--seed", type=int, help="of the noise of clients that send none")
    parser.add_argument("--device", help="the best there is unless given")
    parser.add_argument("--max-batch", type=int, help="chunks computed together at most")
    parser.add_argument("--max-bytes", type=int, help="size of a message at most")
    parser.add_argument("--view", action="append", dest="views", metavar="KEY=VIEW", help="openpi, evo1: client's key")
    parser.add_argument("--channels", choices=("bgr", "rgb"), help="evo1: order in the client's pictures")
    parser.add_argument("--gripper", choices=("raw", "opening"), help="evo1: as trained, or 1 = open and 0 = closed")
    parser.add_argument("--trim-state", action="store_true", help="evo1: ignore the end of a state that is too long")
    given = vars(parser.parse_args(arguments))
    evo1 = {name: given.pop(name) for name in ("channels", "gripper", "trim_state") if name in given}
    try:
        from la4vla.serve.server import Settings, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("msgpack", "websockets"):
            raise
        raise UserError('serving needs msgpack and websockets: pip install "la4vla[serve]".') from error
    return serve(Settings(**given, evo1=evo1))


def _doctor(arguments: Sequence[str]) -> int:
    import argparse
    from pathlib import Path

    from la4vla import doctor

    parser = argparse.ArgumentParser("la4vla doctor")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint, or a run (then its newest one)")
    parser.add_argument("--data", action="append", default=[], metavar="DIR", help="a shard folder; may be repeated")
    given = parser.parse_args(arguments)
    checks = doctor.doctor(given.checkpoint, given.data)
    verdict = doctor.verdict(checks)
    print(doctor.table(checks), verdict, sep="\n")
    return 0 if verdict.startswith("comparable: yes") else 1


COMMANDS: dict[str, Command] = {
    "construct": _construct,
    "data": _data,
    "config": _config,
    "train": _train,
    "eval": _evaluate,
    "serve": _serve,
    "doctor": _doctor,
}


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
    from la4vla.types import exit_status

    return exit_status(COMMANDS[words[0]], words[1:])


if __name__ == "__main__":
    sys.exit(main())
