"""What a policy may be told of the simulator, by the name that it asks for (`Observation.privileged`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.propose.intention import instruction_of
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.construct.vocabulary import contradictions
from la4vla.rng import RngUse, generator
from la4vla.serve.privileged import LOW_LEVEL, PHASE
from la4vla.sim.env import Env
from la4vla.sim.expert import Intent
from la4vla.sim.registry import Simulator
from la4vla.types import UserError

SETTLED = 3  # steps for which another intention must last: at the edge of a condition an expert flickers between two
STILL = 0.005  # of the span from open to closed, a step


class Teller(Protocol):
    """Tells one thing of an env's episodes."""

    def begin(self, task: str, episode: int, state: np.ndarray) -> None:
        """An episode begins. state: float32 [S], the first that the policy sees."""
        ...

    def stepped(self, state: np.ndarray) -> None:
        """A control step was made, and led to this state."""
        ...

    def now(self) -> float | str:
        """What is told at a query."""
        ...


class Tellers:
    """All that one policy asks for."""

    def __init__(self, names: Sequence[str], simulator: Simulator, env: Env, seed: int) -> None:
        """seed: of the choice among phrasings."""
        self._tellers = {name: TELLERS[name](simulator, env, seed) for name in names}

    def begin(self, task: str, episode: int, state: np.ndarray) -> None:
        for teller in self._tellers.values():
            teller.begin(task, episode, state)

    def stepped(self, state: np.ndarray) -> None:
        for teller in self._tellers.values():
            teller.stepped(state)

    def now(self) -> Mapping[str, float | str]:
        return {name: teller.now() for name, teller in self._tellers.items()}


class ExpertPhase:
    """Number of the phase in which the scripted expert would be."""

    def __init__(self, simulator: Simulator, env: Env, seed: int) -> None:
        self._simulator, self._env = simulator, env

    def begin(self, task: str, episode: int, state: np.ndarray) -> None:
        pass

    def stepped(self, state: np.ndarray) -> None:
        pass

    def now(self) -> float:
        """Raises UserError where the expert tells no phases."""
        _, decision = self._simulator.expert(self._env)
        if decision is None:
            raise UserError(f"the scripted expert of {self._simulator.name} tells no phases; set another verifier.")
        return float(decision.phase)


class TrueInstruction:
    """The low-level instruction for what the scripted expert would do.

    It is said when the expert's intention changes, from where the hand is then, and holds as a clip's does. It is said
    anew where the way that is left contradicts it, such as when the hand has gone too far. A wait has no words; the
    last ones hold.
    """

    def __init__(self, simulator: Simulator, env: Env, seed: int) -> None:
        self._simulator, self._env, self._seed = simulator, env, seed
        self._robot = Robot(env.embodiment, robot_frame(env.embodiment.name))
        self._config = ProposeConfig()
        self._position = env.embodiment.state.dims("x", "y", "z")
        self._episode = ("", 0)
        self._phase: tuple[int, ...] | None = None
        self._other, self._text, self._said = 0, "", 0
        self._before, self._closed, self._grasps, self._lets_go = np.zeros(0), False, False, False

    def begin(self, task: str, episode: int, state: np.ndarray) -> None:
        self._episode, self._phase, self._other, self._text, self._said = (task, episode), None, 0, "", 0
        self._before, self._closed, self._grasps, self._lets_go = state, False, False, False
        self.stepped(state)

    def stepped(self, state: np.ndarray) -> None:
        intent, still = self._simulator.intent(self._env), self._still(state)
        self._grip(intent)
        left_3 = self._robot.frame.from_base(intent.target - state[self._position])
        if intent.phase == self._phase:
            self._other = 0
            far = float(np.linalg.norm(left_3)) >= self._config.min_move
            if not (far and contradictions(self._text, left_3)):
                return
        elif self._phase is not None:
            self._other += 1
            if self._other < SETTLED:
                return
        self._phase, self._other = intent.phase, 0
        draws = generator(self._seed, RngUse.WORDING, *self._episode, self._said)
        holds = self._grasps or self._lets_go
        text = instruction_of(state, intent.target, intent.opening, holds, still, self._robot, self._config, draws)
        self._lets_go = False
        if text:
            self._text, self._said = text, self._said + 1

    def _grip(self, intent: Intent) -> None:
        """Follows what the gripper is told: whether it took something was decided when it began to close."""
        closes, held = intent.opening != 1.0, self._grasps
        self._lets_go = not closes and (self._lets_go or held)
        self._grasps = closes and (held if self._closed else intent.grasps)
        self._closed = closes

    def _still(self, state: np.ndarray) -> bool:
        """Whether the gripper has hardly moved since the last step."""
        spec, (before, self._before) = self._env.embodiment.state, (self._before, state)
        opening_2 = spec.opening(np.stack([before, state]))
        return opening_2 is None or abs(float(opening_2[1] - opening_2[0])) < STILL

    def now(self) -> str:
        return self._text


TELLERS: Mapping[str, Callable[[Simulator, Env, int], Teller]] = {PHASE: ExpertPhase, LOW_LEVEL: TrueInstruction}
