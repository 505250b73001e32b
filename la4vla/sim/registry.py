"""The simulators, one descriptor each: all that recording, evaluation, golden frames and `la4vla doctor` know of them.

A new simulator is an `Env` and one `Simulator` in SIMULATORS. Nothing here imports a simulator; an env does when it is
made. The functions of a descriptor live at module level, so that a spawned process finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from la4vla.sim import libero, metaworld
from la4vla.sim.env import Env
from la4vla.sim.expert import Decision, Intent
from la4vla.sim.libero import LiberoEnv
from la4vla.sim.metaworld import MetaWorldEnv
from la4vla.sim.render import use_backend
from la4vla.types import Embodiment, UserError

METAWORLD_EVALUATED = 1000
"""Episodes below are kept for evaluation (MetaWorld's protocols use 0 to 49)."""

LIBERO_HELD_OUT = 20
"""LIBERO has 50 stored states a task, and episode k starts from number k % 50: a large k is no new state. 0 to 19 are
kept for evaluation (libero/heldout-v1), 20 to 49 are for demonstrations."""


@dataclass(frozen=True)
class Setting:
    """What of a protocol decides how images look.

    views   cameras
    size    pixels, square
    fast    without shadows, reflections and anti-aliasing
    """

    views: tuple[str, ...]
    size: int
    fast: bool

    def __str__(self) -> str:
        return f"{','.join(self.views)}:{self.size}:{'fast' if self.fast else 'full'}"

    @staticmethod
    def parse(text: str) -> Setting:
        """The inverse of str(). Raises UserError for another text."""
        views, _, rest = text.partition(":")
        size, _, quality = rest.partition(":")
        if not (views and size.isdigit() and quality in ("full", "fast")):
            raise UserError(f"`{text}` is not VIEW,VIEW:SIZE:full or VIEW,VIEW:SIZE:fast.")
        return Setting(tuple(views.split(",")), int(size), quality == "fast")


@dataclass(frozen=True)
class GoldenScenes:
    """The tasks whose images and physics are compared with a reference (`sim.golden`); episode 0 of each.

    drawn      tasks whose images are compared
    settling   tasks whose bodies must come to rest, the drawn ones among them
    usual      setting that is compared where no protocol asks for one
    others     settings that a reference holds besides: those of the protocols that ship
    figure     task that stands for the simulator in figures
    """

    drawn: tuple[str, ...]
    settling: tuple[str, ...]
    usual: Setting
    others: tuple[Setting, ...]
    figure: str


@dataclass(frozen=True)
class ClientNumbers:
    """The numbers that a published client of a simulator shows its policy and hears from it, where they are not ours.

    embodiment  theirs
    views       cameras that the client shows, in order
    state       env -> float32 [S] of that embodiment, now
    actions     float32 [T, A] of that embodiment -> ours
    """

    embodiment: Embodiment
    views: tuple[str, ...]
    state: Callable[[Env], np.ndarray]
    actions: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Simulator:
    """What the rest of the project must know of a simulator.

    name            of protocols' `suite`, `record.simulator`, the command of `la4vla eval` and the extra
    embodiment      of its robot
    prompts         () -> task -> instruction
    cameras         every view that its envs render
    max_steps       that it allows an episode
    views           those that are recorded where the config names none
    make_env        (views, image_size, horizon, fast) -> Env, in the process that steps it
    prepare         in the process that starts workers: the GL backend's name; UserError where nothing can be simulated
    asset_folders   folders of its models and textures and of its config; None where its package holds all
    expert          the scripted policy's action float32 [A] at the env's present state, and its decision if it tells
    intent          what that policy is about at the env's present state; asked once a step from an episode's first on
    expert_steps    steps that the expert gets for a demonstration
    wait            action [A] that lets objects settle after a reset
    wait_steps      how often `wait` is sent before a demonstration begins; those steps are not recorded
    held_out        whether an episode's initial state is kept for evaluation
    packages        distributions whose versions every result row carries
    pins            distributions that decide images and physics, pinned by the extra; the first is the simulator's own
    scenes          of its golden frames
    clients         name -> numbers of a published client that a protocol may ask for; some are privileged
    """

    name: str
    embodiment: Embodiment
    prompts: Callable[[], Mapping[str, str]]
    cameras: tuple[str, ...]
    max_steps: int
    views: tuple[str, ...]
    make_env: Callable[[Sequence[str], int, int, bool], Env]
    prepare: Callable[[], str]
    asset_folders: Callable[[], tuple[Path, Path] | None]
    expert: Callable[[Env], tuple[np.ndarray, Decision | None]]
    intent: Callable[[Env], Intent]
    expert_steps: int
    wait: tuple[float, ...]
    wait_steps: int
    held_out: Callable[[int], bool]
    packages: tuple[str, ...]
    pins: tuple[str, ...]
    scenes: GoldenScenes
    clients: Mapping[str, ClientNumbers] = field(default_factory=dict)


def _metaworld_assets() -> None:
    return None


def _metaworld_expert(env: Env) -> tuple[np.ndarray, Decision]:
    assert isinstance(env, MetaWorldEnv)
    decision = env.expert_decision()
    return decision.action, decision


def _metaworld_intent(env: Env) -> Intent:
    assert isinstance(env, MetaWorldEnv)
    return env.expert_intent()


def _metaworld_held_out(episode: int) -> bool:
    return episode < METAWORLD_EVALUATED


def _metaworld_evo1_state(env: Env) -> np.ndarray:
    assert isinstance(env, MetaWorldEnv)
    return env.evo1_state()


def _metaworld_evo1_actions(actions_TA: np.ndarray) -> np.ndarray:
    return actions_TA


def _libero_evo1_state(env: Env) -> np.ndarray:
    assert isinstance(env, LiberoEnv)
    return env.evo1_state()


def _libero_evo1_actions(actions_TA: np.ndarray) -> np.ndarray:
    """The client's rule: above 0.5 the gripper opens, else it closes (FACTS 4.7)."""
    turned = actions_TA.copy()
    (gripper,) = libero.EMBODIMENT.action.dims("gripper")
    ours = libero.EMBODIMENT.action
    turned[:, gripper] = np.where(actions_TA[:, gripper] > 0.5, ours.gripper_open, ours.gripper_closed)
    return turned


def _libero_prepare() -> str:
    """Finds LIBERO and its assets; does not import robosuite."""
    libero.open_libero()
    return use_backend()


def _libero_expert(env: Env) -> tuple[np.ndarray, None]:
    assert isinstance(env, LiberoEnv)
    return env.expert_action(), None


def _libero_intent(env: Env) -> Intent:
    assert isinstance(env, LiberoEnv)
    return env.expert_intent()


def _libero_held_out(episode: int) -> bool:
    return episode % libero.BLOCK < LIBERO_HELD_OUT


_METAWORLD = Simulator(
    name="metaworld",
    embodiment=metaworld.EMBODIMENT,
    prompts=metaworld.prompts,
    cameras=tuple(metaworld.CAMERA_TURNS),
    max_steps=metaworld.MAX_STEPS,
    views=("corner4",),
    make_env=MetaWorldEnv,
    prepare=use_backend,
    asset_folders=_metaworld_assets,
    expert=_metaworld_expert,
    intent=_metaworld_intent,
    expert_steps=metaworld.MAX_STEPS,
    wait=(0.0, 0.0, 0.0, 0.0),
    wait_steps=0,
    held_out=_metaworld_held_out,
    packages=("mujoco", "metaworld", "gymnasium", "numpy"),
    pins=("metaworld", "mujoco", "gymnasium", "PyOpenGL"),
    scenes=GoldenScenes(
        drawn=("pick-place-v3", "drawer-open-v3", "hammer-v3"),
        settling=("pick-place-v3", "drawer-open-v3", "hammer-v3"),
        usual=Setting(("corner4",), 112, False),
        others=(
            Setting(("corner4",), 112, True),
            Setting(("corner4",), 448, False),
            Setting(("corner2",), 448, False),
            Setting(("corner2",), 480, False),
        ),
        figure="drawer-open-v3",
    ),
    clients={
        "evo1_privileged": ClientNumbers(
            metaworld.EVO1_EMBODIMENT, ("corner2",), _metaworld_evo1_state, _metaworld_evo1_actions
        )
    },
)

_LIBERO = Simulator(
    name="libero",
    embodiment=libero.EMBODIMENT,
    prompts=libero.prompts,
    cameras=libero.CAMERAS,
    max_steps=libero.MAX_STEPS,
    views=libero.CAMERAS,
    make_env=LiberoEnv,
    prepare=_libero_prepare,
    asset_folders=libero.asset_folders,
    expert=_libero_expert,
    intent=_libero_intent,
    expert_steps=400,  # its successes take 66 to 176 steps
    wait=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0),  # as in libero/openvla-v1
    wait_steps=10,
    held_out=_libero_held_out,
    packages=("mujoco", "robosuite", "hf-libero", "numpy"),
    pins=("hf-libero", "robosuite", "mujoco", "gymnasium", "PyOpenGL"),
    scenes=GoldenScenes(
        # of LIBERO's own suites one task each
        drawn=("libero_object_00", "libero_spatial_00", "libero_goal_00", "libero_10_00"),
        settling=("libero_object_00", "libero_spatial_00", "libero_goal_00", "libero_10_00", "libero_spatial_05"),
        usual=Setting(libero.CAMERAS, 112, False),
        others=(
            Setting(libero.CAMERAS, 112, True),
            Setting(libero.CAMERAS, 256, False),
            Setting(libero.CAMERAS, 448, False),
        ),
        figure="libero_spatial_00",
    ),
    clients={"evo1": ClientNumbers(libero.EVO1_EMBODIMENT, libero.CAMERAS, _libero_evo1_state, _libero_evo1_actions)},
)

SIMULATORS: Mapping[str, Simulator] = {one.name: one for one in (_METAWORLD, _LIBERO)}
"""Every simulator by name."""


def simulator(name: str, what: str) -> Simulator:
    """The simulator of that name. Raises UserError, which begins with `what`, where there is none."""
    if name not in SIMULATORS:
        raise UserError(f"{what}: simulator `{name}` is not known; use one of {', '.join(SIMULATORS)}.")
    return SIMULATORS[name]
