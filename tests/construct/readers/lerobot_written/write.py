"""Made the datasets in written.tar.xz with the lerobot library itself. No test runs this file.

    pip install "lerobot[dataset]==0.6.1"    Python 3.12:    python write.py v3
    pip install "lerobot==0.3.3"             Python 3.11:    python write.py v2
    tar -cJf written.tar.xz deleted depth merged old recorded resumed split

v3 (codebase_version v3.0, H.264, several episodes in one MP4):
    recorded    four episodes in one go
    resumed     two episodes, then two more after the dataset was opened again
    deleted     recorded without its second episode, by delete_episodes
    split       the last two episodes of recorded, by split_dataset
    merged      recorded and deleted in one, by merge_datasets
    depth       two episodes with a depth camera and an image column beside the video
v2 (codebase_version v2.1, one MP4 an episode):
    old         four episodes

Frame f of an episode that was recorded as number e is grey of level 20 e + 3 f. The state is DROID's: x y z, rx ry rz,
gripper. Its x is e + f / 100, so that a frame tells its episode; the action is the state of the next frame.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FPS, HEIGHT, WIDTH = 15, 64, 64
LENGTHS = (12, 9, 14, 10)
TASKS = ("put the cup on the shelf", "open the drawer", "put the cup on the shelf", "close the drawer")
FRONT, DEPTH, HAND = "observation.images.front", "observation.images.depth", "observation.images.hand"


def features(more=()):
    vector = {"dtype": "float32", "shape": (7,), "names": ["x", "y", "z", "rx", "ry", "rz", "gripper"]}
    image = {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    depth = {**image, "shape": (HEIGHT, WIDTH, 1), "info": {"is_depth_map": True}}
    hand = {**image, "dtype": "image"}
    kinds = {FRONT: image, DEPTH: depth, HAND: hand}
    return {"observation.state": vector, "action": vector, **{name: kinds[name] for name in (FRONT, *more)}}


def vector_of(episode, frame):
    return np.array([episode + frame / 100, 0, 0.3, 3.1, 0, 0, frame % 2], np.float32)


def add_episodes(dataset, episodes, more=()):
    for episode in episodes:
        for frame in range(LENGTHS[episode]):
            grey = np.full((HEIGHT, WIDTH, 3), 20 * episode + 3 * frame, np.uint8)
            values = {"observation.state": vector_of(episode, frame), "action": vector_of(episode, frame + 1)}
            values[FRONT] = grey
            if DEPTH in more:
                values[DEPTH] = np.full((HEIGHT, WIDTH, 1), 500 + 10 * frame, np.uint16)
            if HAND in more:
                values[HAND] = grey
            put_frame(dataset, values, TASKS[episode])
        dataset.save_episode()


def put_frame(dataset, values, task):
    if sys.argv[1] == "v2":
        dataset.add_frame(values, task)
    else:
        dataset.add_frame({**values, "task": task})


def main_v2():
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create("old", FPS, features(), root=fresh("old"))
    add_episodes(dataset, range(4))


def main_v3():
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, split_dataset
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def create(name, more=()):
        encoder = RGBEncoderConfig(vcodec="h264")
        return LeRobotDataset.create(name, FPS, features(more), root=fresh(name), rgb_encoder=encoder)

    def opened(name):
        return LeRobotDataset(name, root=HERE / name)

    dataset = create("recorded")
    add_episodes(dataset, range(4))
    dataset.finalize()
    dataset = create("resumed")
    add_episodes(dataset, range(2))
    dataset.finalize()
    dataset = LeRobotDataset.resume("resumed", root=HERE / "resumed", rgb_encoder=RGBEncoderConfig(vcodec="h264"))
    add_episodes(dataset, range(2, 4))
    dataset.finalize()
    delete_episodes(opened("recorded"), [1], output_dir=fresh("deleted"), repo_id="deleted")
    split_dataset(opened("recorded"), {"first": [0, 1], "split": [2, 3]}, output_dir=fresh("parts"))
    shutil.move(HERE / "parts/split", fresh("split"))
    shutil.rmtree(HERE / "parts")
    merge_datasets([opened("recorded"), opened("deleted")], "merged", output_dir=fresh("merged"))
    dataset = create("depth", (DEPTH, HAND))
    add_episodes(dataset, range(2), (DEPTH, HAND))
    dataset.finalize()


def fresh(name):
    shutil.rmtree(HERE / name, ignore_errors=True)
    return HERE / name


if __name__ == "__main__":
    {"v2": main_v2, "v3": main_v3}[sys.argv[1]]()
