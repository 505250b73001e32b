"""What every env on MuJoCo needs, whatever the simulator: checked settings and actions, one renderer a scene, upright
images that are never flat, and an orderly end. `MetaWorldEnv` and `LiberoEnv` add what differs.

A simulator's own way of rendering is not used: it never makes its GL context current, so a second env in the process
draws wrong images, and a viewer collected late deletes what the next one draws with.
"""

from __future__ import annotations

import atexit
import gc
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from la4vla.sim.env import ROBOT_POSE, EnvStep, SceneChange
from la4vla.sim.milestones import Handling
from la4vla.sim.render import check_frame, use_backend
from la4vla.sim.things import Thing, toy_of
from la4vla.types import Embodiment, Observation, UserError

FAINT = 8  # grey levels; a pixel that changes less is none of a toy's
SHADOW_MAP = 1024  # pixels; 4096, the default, differs by 0.04 grey levels in MetaWorld and costs 1.6x


class MujocoEnv(ABC):
    """An `Env` over one MuJoCo scene at a time; one live env a process.

    simulator       its name in sentences
    turns           camera -> quarter turns that make its image upright (a rotation, never a mirror image)
    max_steps       steps that the simulator itself allows an episode
    hand            name of the body that carries the gripper
    fingers         names of the bodies of its two fingers
    base            name of the robot's fixed body
    hidden_groups   groups of geoms that are not drawn
    task_file       where task names are listed
    example         a task name
    """

    embodiment: Embodiment
    simulator: ClassVar[str]
    turns: ClassVar[Mapping[str, int]]
    max_steps: ClassVar[int]
    hand: ClassVar[str]
    fingers: ClassVar[tuple[str, str]]
    base: ClassVar[str]
    hidden_groups: ClassVar[tuple[int, ...]] = ()
    task_file: ClassVar[str]
    example: ClassVar[str]

    def __init__(self, views: Sequence[str], image_size: int, horizon: int, fast: bool) -> None:
        """views: camera names. image_size: pixels, square. horizon: control steps after which an episode is truncated.
        fast: no shadows, reflections or anti-aliasing; other images: train and evaluate with the same setting.

        Raises UserError for bad settings and where no GL backend renders.
        """
        for view in views:
            if view not in self.turns:
                raise UserError(f"view `{view}` is not a {self.simulator} camera; use one of {', '.join(self.turns)}.")
        if not 1 <= horizon <= self.max_steps:
            raise UserError(f"horizon is {horizon}; {self.simulator} episodes have 1 to {self.max_steps} steps.")
        self.backend = use_backend()
        self._views = tuple(views)
        self._image_size = image_size
        self._horizon = horizon
        self._fast = fast
        self._prompts = self._read_prompts()
        self._task = ""
        self._steps = 0
        self._scene: Any = None
        self._renderer: Any = None
        self._looks: Any = None
        self._expert: Any = None
        self._handling: Handling | None = None

    def reset(self, task: str, episode: int, change: SceneChange | None = None) -> Observation:
        """Episode number `episode` >= 0 of `task`. Cheap within a task; another task builds another scene. A change of
        the robot's pose moves its hand only, which may then touch the objects in another way."""
        assert episode >= 0
        if task not in self._prompts:
            raise UserError(
                f"`{task}` is not a {self.simulator} task; names look like `{self.example}` ({self.task_file})."
            )
        if task != self._task:
            self.close()
            self._build(task)
            self._task = task
        self._looks.restore(self._renderer)
        self._begin(episode)
        if change is not None and change.name == ROBOT_POSE:
            self._move_hand(change.level, change.draws(task, episode))
        elif change is not None:
            self._looks.apply(change, change.draws(task, episode), self._renderer)
        self._steps = 0
        self._handling = Handling(self._model, self._data, self.base, self.fingers, self._targets())
        return self.observe()

    def step(self, action: np.ndarray) -> EnvStep:
        """One control step. action: as `embodiment.action` says, clipped to [-1, 1]."""
        action = np.asarray(action, np.float32)
        size = len(self.embodiment.action.names)
        if action.shape != (size,):
            raise UserError(f"{self.simulator} takes actions of size {size}, got shape {list(action.shape)}.")
        if not np.isfinite(action).all():
            raise ValueError(f"{self._task}: action {action.tolist()} is not finite")
        if self._steps >= self._horizon:
            raise RuntimeError(f"{self._task}: step past the horizon of {self._horizon}; call reset first")
        success = self._advance(np.clip(action, -1.0, 1.0))
        self._steps += 1
        return EnvStep(self._state(), success, self._steps >= self._horizon)

    def observe(self) -> Observation:
        """The present state and images, rendered now."""
        views = {view: self._render(view) for view in self._views}
        return Observation(views, self._state(), self._prompts[self._task])

    def things(self, view: str = "") -> tuple[Thing, ...]:
        """What the scene holds now that has a name: toys that a change put there, and parts that are open or closed.

        view: a camera of this env, in which the pixels of toys are counted; empty: they are not.
        """
        pixels = self._toy_pixels(view) if view else [0] * len(self._looks.solids)
        toys = [toy_of(solid, count) for solid, count in zip(self._looks.solids, pixels, strict=True)]
        base_3 = self._data.xpos[self._model.body(self.base).id]
        return tuple(thing.seen_from(base_3) for thing in (*toys, *self._parts()))

    def _toy_pixels(self, view: str) -> list[int]:
        """How many pixels change where one of the toys is taken away."""
        solids, whole = self._looks.solids, self._render(view).astype(int)
        counts = []
        for number in range(len(solids)):
            self._looks.solids = [solid for other, solid in enumerate(solids) if other != number]
            counts.append(int((np.abs(self._render(view).astype(int) - whole).max(axis=2) > FAINT).sum()))
        self._looks.solids = solids
        return counts

    def _parts(self) -> Sequence[Thing]:
        """Things of the scene that are open or closed, pressed or not; none unless a simulator knows some."""
        return ()

    def body_positions(self) -> np.ndarray:
        """float64 [N, 3]: where every body of the scene is now, m, world frame."""
        return self._data.xpos.copy()

    def milestones(self) -> frozenset[str]:
        assert self._handling is not None, "reset begins an episode"
        return self._handling.update() | ({"place"} if self._placed() else set())

    @abstractmethod
    def _targets(self) -> Sequence[int]:
        """Numbers of the bodies that the task is about."""

    @abstractmethod
    def _placed(self) -> bool:
        """Whether a part of the task's goal holds now."""

    def close(self) -> None:
        """Free the renderer before the model, and collect both now: collected late, they would black out the next
        env."""
        if self._renderer is not None:
            self._renderer.close()
            atexit.unregister(self.close)
        if self._scene is not None:
            self._scene.close()
        self._renderer = self._scene = self._looks = self._expert = self._handling = None
        self._task = ""
        gc.collect()

    @abstractmethod
    def _read_prompts(self) -> Mapping[str, str]:
        """Task -> instruction."""

    @abstractmethod
    def _build(self, task: str) -> None:
        """Makes `_scene` and its `_looks` for a task."""

    @abstractmethod
    def _begin(self, episode: int) -> None:
        """Puts the built scene into the initial state of an episode, whatever ran before."""

    @abstractmethod
    def _move_hand(self, distance: float, draws: np.random.Generator) -> None:
        """After `_begin`: puts the hand `distance` (m) from where it is; see `sim.start`."""

    @abstractmethod
    def _advance(self, action: np.ndarray) -> bool:
        """One control step with a clipped action float32 [A]. Whether the task is solved at this step."""

    @abstractmethod
    def _state(self) -> np.ndarray:
        """float32 [S]: the present state."""

    @property
    @abstractmethod
    def _model(self) -> Any:
        """The scene's mujoco.MjModel. Not kept here: it has to be gone when the scene is."""

    @property
    @abstractmethod
    def _data(self) -> Any:
        """The scene's mujoco.MjData."""

    def _render(self, view: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self._new_renderer()
            # EGL goes down before the interpreter collects what is left; a renderer freed after that prints an error.
            atexit.register(self.close)
        self._renderer.update_scene(self._data, view, self._visible)
        self._looks.decorate(self._renderer.scene)
        image = np.rot90(self._renderer.render(), self.turns[view])
        return check_frame(np.ascontiguousarray(image), f"{self._task}/{view}")

    def _new_renderer(self) -> Any:
        import mujoco

        quality = self._model.vis.quality
        quality.shadowsize = 0 if self._fast else SHADOW_MAP
        if self._fast:
            quality.offsamples = 0
        screen = self._model.vis.global_  # its 640 x 480 by default would be the most that can be drawn
        screen.offwidth, screen.offheight = (max(s, self._image_size) for s in (screen.offwidth, screen.offheight))
        self._visible = mujoco.MjvOption()  # pyright: ignore[reportAttributeAccessIssue]
        for group in self.hidden_groups:
            self._visible.geomgroup[group] = 0
        renderer = mujoco.Renderer(self._model, self._image_size, self._image_size)
        if self._fast:
            reflection = mujoco.mjtRndFlag.mjRND_REFLECTION  # pyright: ignore[reportAttributeAccessIssue]
            renderer.scene.flags[reflection] = 0
        return renderer
