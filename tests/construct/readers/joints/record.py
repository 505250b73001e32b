"""Made metaworld.npz and libero.npz: joints of a scripted expert beside the pose that the env told. No test runs this.

    LA4VLA_LIBERO_ASSETS=... python -m tests.construct.readers.joints.record metaworld libero

joints  float64 [T, 7], rad, of the simulation at the end of the step
state   float32 [T, S], what the env told then: S is 4 or 7, its embodiment's state
task    the task
base    float64 [7], position of the robot's base in the world and its quaternion w x y z
Every third step of one episode; the first ten frames are commanded to stand still.
"""

import sys
from pathlib import Path

import numpy as np

from la4vla.sim.registry import SIMULATORS

HERE = Path(__file__).parent
TASKS = {"metaworld": "pick-place-v3", "libero": "libero_object_03"}
JOINTS = {
    "metaworld": [f"right_j{number}" for number in range(7)],
    "libero": [f"robot0_joint{number}" for number in range(1, 8)],
}
STILL, STEPS, EVERY = 30, 240, 3


def main(names):
    for name in names:
        simulator = SIMULATORS[name]
        simulator.prepare()
        env = simulator.make_env(simulator.views, 64, 400, True)
        state = env.reset(TASKS[name], 1000).state
        joints, states = [], []
        for step in range(STEPS):
            if step % EVERY == 0:
                model, data = env._model, env._data
                places = [int(model.jnt_qposadr[model.joint(item).id]) for item in JOINTS[name]]
                joints.append(data.qpos[places].copy())
                states.append(state)
            resting = step < STILL
            command = np.array(simulator.wait, np.float32) if resting else simulator.expert(env)[0]
            state = env.step(command).state
        base = env._model.body(env.base).id
        pose = np.concatenate([env._data.xpos[base], env._data.xquat[base]])
        np.savez_compressed(
            HERE / f"{name}.npz", joints=np.array(joints), state=np.array(states), task=TASKS[name], base=pose
        )


if __name__ == "__main__":
    main(sys.argv[1:])
