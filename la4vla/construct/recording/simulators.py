"""The door from `record` to the simulators. Demonstrations of other sources are cut where no simulator is installed, so
`la4vla.sim` is imported only when a simulator is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from la4vla.sim.registry import Simulator


def simulator(name: str) -> Simulator:
    """The simulator that `record.simulator` names. Raises UserError where there is none of that name."""
    from la4vla.sim import registry

    return registry.simulator(name, "record.simulator")
