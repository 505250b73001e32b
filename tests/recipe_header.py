"""What the comment on top of a recipe says, taken apart: its fields, its commands, and what the commands lead to."""

import re
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.__main__ import parsed
from benchmarks.study import config as study_config
from benchmarks.study import plan
from la4vla.construct.__main__ import STEPS
from la4vla.gpla.__main__ import STEPS as GPLA_STEPS

ROOT = Path(__file__).parents[1]
FIELD = re.compile(r"\b(Hardware|Cost|Expected result)(?: \([^)]*\))?: ")
COMMAND = "#   "
POINTER = re.compile(r'(README|[\w./]+\.(?:md|yaml))(?:, "([^"]+)")?')


@dataclass(frozen=True)
class Command:
    """A command of a header. config: what it is given; empty for one that is of no recipe. processes: of a training."""

    text: str
    config: str
    overrides: tuple[str, ...]
    processes: int


def lines(path: Path) -> list[str]:
    """The comment lines on top of the file."""
    every = path.read_text().splitlines()
    return every[: next(number for number, line in enumerate(every) if not line.startswith("#"))]


def fields(path: Path) -> dict[str, list[str]]:
    """Field -> its texts, one unless something is wrong with the header; without the commands."""
    prose = " ".join(line.lstrip("# ") for line in lines(path) if not line.startswith(COMMAND))
    parts = FIELD.split(prose)
    found: dict[str, list[str]] = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        found.setdefault(name, []).append(text.partition("UNVERIFIED")[0])
    return found


def pointers(text: str) -> list[tuple[Path, str]]:
    """The files that a text names, each with the heading that stands behind it, or an empty string."""
    return [(ROOT / ("README.md" if name == "README" else name), heading) for name, heading in POINTER.findall(text)]


def commands(path: Path) -> list[Command]:
    """The header's commands. Raises ValueError, UserError or SystemExit for one that could not be run."""
    text = "\n".join(line.removeprefix(COMMAND) for line in lines(path) if line.startswith(COMMAND))
    return [_command(line) for line in text.replace("\\\n", " ").splitlines()]


def _command(text: str) -> Command:
    words = shlex.split(text, comments=True)
    processes = 1
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        processes = int(value) if name == "NPROC" else processes
    match words:
        case ["hf", "download", *_]:
            return Command(text, "", (), 1)
        case ["la4vla", "construct", *rest]:
            rest = [word for word in rest if word not in (*STEPS, "texts", "--dry-run")]
        case ["la4vla", "gpla", *rest]:
            rest = rest[1:] if rest[0] in GPLA_STEPS else rest
        case ["la4vla", "eval", *rest]:
            options = parsed(rest)
            if options.command == "study":
                plan.expand(study_config.load(ROOT / options.config, options.overrides), options.part)
            acts = options.command != "study" and "text" in options and (options.text or options.high)
            rest = [str(acts or options.config), *options.overrides]
        case ["torchrun", "--standalone", "--nproc-per-node", count, "-m", module, *rest]:
            processes = int(count)
            if find_spec(f"{module}.__main__") is None:
                raise ValueError(f"`{text}`: there is no module {module}")
        case ["bash", script, *rest]:
            if not (ROOT / script).is_file():
                raise ValueError(f"`{text}`: there is no {script}")
        case _:
            raise ValueError(f"`{text}`: not a command of this project")
    if any("=" not in word for word in rest[1:]):
        raise ValueError(f"`{text}`: more than a config and key=value changes")
    return Command(text, rest[0], tuple(rest[1:]), processes)
