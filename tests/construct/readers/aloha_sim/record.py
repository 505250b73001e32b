"""Made handover.npz in gym-aloha's simulator: two ViperX arms hand a cube over. No test runs this file.

    python3.11 -m venv aloha && aloha/bin/pip install gym-aloha==0.1.5 "mujoco==3.8.*"    an environment of its own
    MUJOCO_GL=egl aloha/bin/python record.py

A script of waypoints: the right arm fetches the cube and brings it to the middle while the left one rests, the left arm
comes and takes it, the right one lets go and leaves, and at last both move at once. The hands' waypoints become joints
by damped least squares. An attempt is kept if the task's own reward says that the left hand holds the cube above the
table at the end; the numbers of those tried and kept are printed.

states, actions    float32 [episode, T, 14], gym-aloha's own: six joints in rad and a gripper, 1 open, left arm first
left, right        float32 [episode, T / 5, 7], of every fifth frame the simulator's own position of the body
                   gripper_link and its quaternion w x y z, in the world
frames             int [episode], T of each episode; what is behind it is zero
"""

from pathlib import Path

import numpy as np
from dm_control import mujoco
from dm_control.rl import control
from gym_aloha.constants import ASSETS_DIR, DT, START_ARM_POSE
from gym_aloha.tasks import sim
from gym_aloha.utils import sample_box_pose

HERE = Path(__file__).parent
SEEDS, WANTED = range(100, 120), 3
ARMS = {"left": (slice(0, 6), "vx300s_left/gripper_link"), "right": (slice(8, 14), "vx300s_right/gripper_link")}
REACH = 0.125  # m from gripper_link to between the fingers, along its x axis
HOLD, GRIPPING = 10, 25  # frames at a waypoint, and where a gripper closes or opens, which it does slowly
SPEED = 0.008  # m that a waypoint moves a frame at most
EVERY = 5  # frames between the poses that are stored
GRIP = 0.15  # commanded opening that holds the cube


class Blind(sim.TransferCubeTask):
    """The task without its pictures, which take most of the time."""

    def get_observation(self, physics):
        return {"qpos": self.get_qpos(physics)}


def pose_of(physics, arm):
    body = ARMS[arm][1]
    return physics.named.data.xpos[body].copy(), physics.named.data.xmat[body].reshape(3, 3).copy()


def joints_for(physics, arm, place, axes, start):
    """The arm's joints [6] that bring its hand to a place and a turn. start: where the search begins."""
    where, body = ARMS[arm]
    model, data = physics.model.ptr, physics.data.ptr
    number = physics.model.name2id(body, "body")
    dofs = [physics.model.name2id(f"vx300s_{arm}/{name}", "joint") for name in JOINTS]
    joints = np.array(start, float)
    moved, turned = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    for _ in range(200):
        data.qpos[where] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        now = data.xmat[number].reshape(3, 3)
        turn = sum(np.cross(now[:, axis], axes[:, axis]) for axis in range(3)) / 2
        error = np.concatenate([place - data.xpos[number], 0.3 * turn])
        if np.abs(error).max() < 1e-4:
            break
        mujoco.mj_jacBody(model, data, moved, turned, number)
        jacobian = np.concatenate([moved[:, dofs], 0.3 * turned[:, dofs]])
        joints += jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-4 * np.eye(6), error)
    return joints


JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


def turned(arm, angle):
    """Axes of a hand that looks to the table's middle, the right one down by `angle` rad, the left one rolled by it:
    the two pairs of fingers then stand across each other."""
    side = 1.0 if arm == "left" else -1.0
    pitch, roll = (0.0, angle) if arm == "left" else (angle, 0.0)
    ahead = np.array([side * np.cos(pitch), 0.0, -np.sin(pitch)])
    across = np.array([0.0, side, 0.0])
    above = np.cross(ahead, across)
    rolled = np.cos(roll) * across + np.sin(roll) * above
    return np.stack([ahead, rolled, np.cross(ahead, rolled)], axis=1)


def waypoints(cube, rest):
    """[(left place, left roll, left opening, right place, right pitch, right opening)]. A place is that between the
    fingers. cube: its place. rest: {arm: place}."""
    left, right, down, roll = rest["left"], rest["right"], 1.0, np.pi / 2
    middle = np.array([0.0, 0.5, 0.28])
    above, at = cube + np.array([0, 0, 0.12]), cube + np.array([0, 0, 0.015])
    beside = middle + np.array([-0.12, 0, 0])
    taking = middle + np.array([-0.03, 0, -0.02])
    away = middle + np.array([0.15, 0, 0.02])
    return [
        (left, 0.0, 1, right, 0.0, 1),
        (left, 0.0, 1, above, down, 1),
        (left, 0.0, 1, at, down, 1),
        (left, 0.0, 1, at, down, GRIP),
        (left, 0.0, 1, above, down, GRIP),
        (left, 0.0, 1, middle, 0.0, GRIP),
        (beside, roll, 1, middle, 0.0, GRIP),
        (taking, roll, 1, middle, 0.0, GRIP),
        (taking, roll, GRIP, middle, 0.0, GRIP),
        (taking, roll, GRIP, middle, 0.0, 1),
        (taking, roll, GRIP, away, 0.0, 1),
        (middle + np.array([-0.1, 0.08, 0.05]), roll, GRIP, away + np.array([0.03, -0.12, -0.05]), 0.0, 1),
    ]


def commands(physics, cube):
    """The commands of all frames, [T, 14]."""
    saved = physics.data.qpos.copy()
    place, angle, opening, joints, rows = {}, {}, {}, {}, []
    for arm, (where, _) in ARMS.items():
        at, axes = pose_of(physics, arm)
        place[arm], angle[arm], opening[arm] = at + REACH * axes[:, 0], 0.0, 0.1
        joints[arm] = np.array(START_ARM_POSE)[where]
    for step in waypoints(cube, dict(place)):
        goal = {"left": step[:3], "right": step[3:]}
        length = max(np.linalg.norm(goal[arm][0] - place[arm]) for arm in ARMS)
        turn = max(abs(goal[arm][1] - angle[arm]) for arm in ARMS)
        grip = max(abs(goal[arm][2] - opening[arm]) for arm in ARMS)
        count = max(int(np.ceil(length / SPEED)), int(np.ceil(turn / 0.03)), 12 if grip > 0.1 else 1)
        hold = GRIPPING if grip > 0.1 and length == 0 else HOLD
        for share in np.concatenate([np.linspace(0, 1, count + 1)[1:], np.ones(hold)]):
            row = []
            for arm in ARMS:
                to, to_angle, to_opening = goal[arm]
                between = place[arm] + share * (to - place[arm])
                axes = turned(arm, angle[arm] + share * (to_angle - angle[arm]))
                joints[arm] = joints_for(physics, arm, between - REACH * axes[:, 0], axes, joints[arm])
                row += [*joints[arm], opening[arm] + share * (to_opening - opening[arm])]
            rows.append(row)
        for arm in ARMS:
            place[arm], angle[arm], opening[arm] = goal[arm]
    physics.data.qpos[:] = saved
    physics.forward()
    return np.array(rows)


def attempt(seed):
    """(states, actions, {arm: poses}), or None where the cube was not handed over."""
    sim.BOX_POSE[0] = sample_box_pose(seed)
    task = Blind()
    physics = mujoco.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
    env = control.Environment(physics, task, float("inf"), control_timestep=DT, flat_observation=False)
    seen = env.reset().observation["qpos"]
    cube = physics.named.data.xpos["box"].copy()
    cube[2] = 0.02
    states, poses, reward = [], {arm: [] for arm in ARMS}, 0
    actions = commands(physics, cube)
    for action in actions:
        states.append(seen)
        for arm, (_, body) in ARMS.items():
            poses[arm].append([*physics.named.data.xpos[body], *physics.named.data.xquat[body]])
        step = env.step(action)
        seen, reward = step.observation["qpos"], step.reward
    print(f"seed {seed}: reward {reward}, {len(actions)} frames, cube {np.round(physics.named.data.xpos['box'], 3)}")
    if reward != 4:
        return None
    return np.array(states), actions, {arm: np.array(rows[::EVERY]) for arm, rows in poses.items()}


def main():
    kept = []
    for seed in SEEDS:
        if (made := attempt(seed)) is not None:
            kept.append(made)
        if len(kept) == WANTED:
            print(f"{len(kept)} of {seed - SEEDS[0] + 1} attempts kept")
            break

    def padded(parts):
        longest = max(map(len, parts))
        return np.stack([np.pad(part, ((0, longest - len(part)), (0, 0))) for part in parts]).astype(np.float32)

    np.savez_compressed(
        HERE / "handover.npz",
        states=padded([states for states, _, _ in kept]),
        actions=padded([actions for _, actions, _ in kept]),
        **{arm: padded([poses[arm] for *_, poses in kept]) for arm in ARMS},
        frames=np.array([len(actions) for _, actions, _ in kept]),
    )


if __name__ == "__main__":
    main()
