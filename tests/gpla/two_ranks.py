"""Rounds as one of two ranks, of which rank 0 is killed while a round is judged.

python two_ranks.py PLACE NAME KILLED_IN_ROUND
"""

import os
import signal
import sys
from pathlib import Path

from la4vla.gpla import rounds
from tests.gpla.conftest import RuleScorer, config_of


class Killer(RuleScorer):
    """Deeds of a round: 4 prompts of at most 3 sentences on 2 ranks."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def scores(self, deeds):
        self.batches -= 1
        if self.batches == 0 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().scores(deeds)


if __name__ == "__main__":
    place, name, killed = sys.argv[1:]
    sys.exit(rounds.run(config_of(Path(place), name), Killer(int(killed) + 1)))
