"""`la4vla.train` that SIGKILLs itself: no handler runs, nothing is flushed.

python killed.py saving STEP CONFIG ...          in the middle of saving a step
python killed.py between STEP SECONDS CONFIG ... that long after a step was saved, wherever it then is but in a save
"""

import os
import signal
import sys
import threading
from pathlib import Path

from la4vla.train import checkpoint
from la4vla.train.__main__ import main


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_saving(step: int) -> None:
    victim = f"step_{step:08d}.tmp"
    sync = checkpoint._sync

    def kill_or_sync(folder: Path) -> None:
        if folder.name == victim:
            kill()
        sync(folder)

    checkpoint._sync = kill_or_sync


def kill_between_saves(step: int, seconds: float) -> None:
    saving = threading.Lock()
    save = checkpoint.save

    def kill_outside() -> None:
        with saving:
            kill()

    def save_and_start_clock(config, engine, identity, position, skipped_steps, world) -> None:
        with saving:
            save(config, engine, identity, position, skipped_steps, world)
        if position.step == step:
            threading.Timer(seconds, kill_outside).start()

    checkpoint.save = save_and_start_clock


if __name__ == "__main__":
    if sys.argv[1] == "saving":
        kill_while_saving(int(sys.argv[2]))
        sys.exit(main(sys.argv[3:]))
    kill_between_saves(int(sys.argv[2]), float(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
