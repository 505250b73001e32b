"""`python -m la4vla.config CONFIG.yaml [key=value ...]`: prints the resolved config."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from la4vla.config.load import load, to_yaml
from la4vla.shell import exit_status


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("usage: python -m la4vla.config CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    print(to_yaml(load(arguments[0], arguments[1:])), end="")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
