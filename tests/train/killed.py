"""`la4vla.train` that SIGKILLs itself in the middle of saving one step: no handler runs, nothing is flushed."""

import os
import signal
import sys
from pathlib import Path

from la4vla.train import checkpoint
from la4vla.train.__main__ import main

if __name__ == "__main__":
    victim = f"step_{int(sys.argv[1]):08d}.tmp"
    sync = checkpoint._sync

    def kill_or_sync(folder: Path) -> None:
        if folder.name == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(folder)

    checkpoint._sync = kill_or_sync
    sys.exit(main(sys.argv[2:]))
