"""`la4vla doctor`: whether success rates made here can be compared with those made elsewhere, and what to cure if not.

Simulators and GL drivers run in subprocesses: the doctor goes on where one dies or hangs. What is neither installed nor
named on the command line (a suite, a checkpoint, shards, a protocol) is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from la4vla.doctor.check import Check, Demand
from la4vla.doctor.files import checkpoint_check, shards_check
from la4vla.doctor.machine import machine_checks
from la4vla.doctor.report import summary_table, to_json, verdict
from la4vla.doctor.suite import installed, suite_checks
from la4vla.sim.golden import references
from la4vla.sim.registry import SIMULATORS, simulator

__all__ = ["Check", "Demand", "doctor", "summary_table", "to_json", "verdict"]


def doctor(
    demand: Demand | None = None, checkpoint: Path | None = None, data: Sequence[str] = (), golden: Path | None = None
) -> list[Check]:
    """Every check, in the order printed; half a minute on two idle CPU cores, and the time to read shards and weights.

    demand: the protocol to be run; only its suite is judged, at its image size. golden: a file of references other
    than the one that ships. Raises UserError where it is no such file, and for a protocol of an unknown suite.
    """
    reference = references(golden)
    if demand is not None:
        simulator(demand.suite, demand.title)
    checks = machine_checks()
    for suite, sim in SIMULATORS.items():
        if demand is not None and demand.suite != suite:
            continue
        if installed(sim.pins[0]):
            checks.extend(suite_checks(suite, reference, demand))
        else:
            says = f"{sim.pins[0]} is not installed."
            checks.append(Check(suite, "fail" if demand else "note", says, f'pip install "la4vla[{suite}]"', suite))
    if checkpoint is not None:
        checks.append(checkpoint_check(checkpoint, demand))
    return [*checks, *(shards_check(folder, demand) for folder in data)]
