"""The study on the command line.

python -m benchmarks.study configs/study/study.yaml                               all parts
python -m benchmarks.study configs/study/study.yaml --part paradigms_0 --hours 2  one, for two hours at most
python -m benchmarks.study configs/study/study.yaml --list                        what is done
python -m benchmarks.study configs/study/study.yaml --tables                      docs/study/ from the rows
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study import plan, run, tables
from la4vla.types import exit_status


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.study", description="The paper's claims at a small scale.")
    parser.add_argument("config", type=Path, help="configs/study/study.yaml, or another one of its kind")
    parser.add_argument("--part", action="append", default=[], help="only this part; may be repeated")
    parser.add_argument("--hours", type=float, default=math.inf, help="start no job that would end later")
    parser.add_argument("--list", action="store_true", help="the jobs and which of them have rows")
    parser.add_argument("--tables", action="store_true", help="write the tables and figures of all rows")
    parser.add_argument("overrides", nargs="*", help="key=value changes of the config")
    options = parser.parse_intermixed_args(list(arguments))
    study = plan.load(options.config, options.overrides)
    if options.list:
        print(run.listing(study, options.part))
        return 0
    if options.tables:
        print(f"tables: {tables.write(study, Path(study.rows).parent)}")
        return 0
    return run.run(study, options.part, options.hours)


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
