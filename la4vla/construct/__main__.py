"""`python -m la4vla.construct CONFIG.yaml [key=value ...]`: record what is missing, then build what is out of date."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from la4vla.config import ConstructConfig, load
from la4vla.construct.build import build
from la4vla.construct.record import record
from la4vla.types import UserError, exit_status


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 called without a config. Raises UserError."""
    if not arguments:
        print("usage: python -m la4vla.construct CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    config = load(arguments[0], arguments[1:])
    if not isinstance(config, ConstructConfig):
        raise UserError(f"{arguments[0]}: not a construct config; its first line must be `schema: construct`.")
    record(config)
    build(config)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
