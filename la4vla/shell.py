"""What every command returns to the shell."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence

from la4vla.types import UserError


def exit_status(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """What a command returns to the shell: its own status, or 2 after a UserError, said in one line on stderr."""
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not _unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in it
        return 1


def _unread() -> bool:
    """Whether whoever read stdout has gone (`| head`)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))
