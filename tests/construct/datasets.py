"""Small datasets of every layout that is read, written file by file as their own tools lay them out, with images that
carry their frame's number as a grey level: 3 a frame, 20 more for every episode, 25 more for a camera at the wrist."""

import json

import av
import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from la4vla.config import ConstructConfig, ReadConfig

FPS = 15
LENGTHS = (60, 45, 52)
SENTENCES = ("put the cup on the shelf", "open the drawer", "put the cup on the shelf")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
HEIGHT, WIDTH = 32, 48


def grey(episode, frame, wrist=False):
    return 3 * frame + 20 * episode + 25 * wrist


def image(level):
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def level(jpeg):
    return float(simplejpeg.decode_jpeg(jpeg).mean())


def poses(length, episode=0):
    """DROID's raw numbers, float32 [length, 7]: forward, down, left; a roll that wraps at pi; gripper 0 is open."""
    bends = [0, length // 3 + episode, 2 * length // 3, length - 1]
    corners = np.array([[0.4, 0.0, 0.5], [0.6, 0.0, 0.5], [0.6, 0.0, 0.3], [0.6, 0.2, 0.3]])
    frames = np.arange(length)
    position = np.stack([np.interp(frames, bends, corners[:, axis]) for axis in range(3)], axis=1)
    roll = np.mod(3.1 + 0.001 * frames + np.pi, 2 * np.pi) - np.pi
    turn = np.stack([roll, np.zeros(length), np.full(length, 0.2)], axis=1)
    return np.concatenate([position, turn, np.zeros((length, 1))], axis=1).astype(np.float32)


def commands(length, episode=0):
    """Raw actions of `poses`: each number a hundredth more. The roll tells the frame."""
    return poses(length, episode) + np.float32(0.01)


def handed_on(raw):
    """DROID's raw numbers as its robot file has them: a roll about pi, an opening."""
    values = raw.copy()
    values[:, 3] = np.mod(raw[:, 3], 2 * np.pi)
    values[:, 6] = 1 - raw[:, 6]
    return values


def config_of(root, format, robot, shards=2, **read):
    return ConstructConfig(
        out_dir=str(root.parent / "out"),
        read=ReadConfig(format=format, path=str(root), robot=robot, **read),
        shards=shards,
    )


def write_video(path, levels, fps=FPS, codec="libx264"):
    """Flat images; H.264 with B-frames and a key frame every 20, or AV1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": "4"} if codec == "libx264" else {"crf": "10", "preset": "12"}
        stream = container.add_stream(codec, rate=fps, options=options)
        size = 1 if codec == "libx264" else 2  # AV1's encoder wants at least 64 pixels
        stream.width, stream.height, stream.pix_fmt = size * WIDTH, size * HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 20
        for value in levels:
            pixels = np.full((size * HEIGHT, size * WIDTH, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def cell(value, store):
    if store == "jpeg":
        return {"bytes": simplejpeg.encode_jpeg(image(value), quality=90), "path": None}
    return {"bytes": cv2.imencode(".png", image(value))[1].tobytes(), "path": None}


def table_of(episode, length, first_row, images=(), store="video"):
    frames = np.arange(length)
    values = poses(length, episode)
    columns = {
        "observation.state": pa.FixedSizeListArray.from_arrays(values.ravel(), 7),
        "action": pa.FixedSizeListArray.from_arrays(commands(length, episode).ravel(), 7),
        "timestamp": pa.array((frames / FPS).astype(np.float32)),
        "frame_index": pa.array(frames),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(first_row + frames),
        "task_index": pa.array(np.full(length, int(SENTENCES[episode] != SENTENCES[0]))),
    }
    for name in images:
        columns[name] = pa.array([cell(grey(episode, frame, name == WRIST), store) for frame in frames])
    return pa.table(columns)


def features(views, store):
    kind = "video" if store == "video" else "image"
    about = {name: {"dtype": "float32", "shape": [7], "names": None} for name in ("observation.state", "action")}
    about |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "task_index")}
    depth = {"observation.images.depth": {"dtype": "video", "shape": [1], "info": {"is_depth_map": True}}}
    return about | {name: {"dtype": kind, "shape": [HEIGHT, WIDTH, 3]} for name in views} | (depth if not views else {})


def write_info(root, version, views, store, data_path, video_path):
    info = {"codebase_version": version, "fps": FPS, "chunks_size": 2, "features": features(views, store)}
    info |= {"data_path": data_path, "video_path": video_path, "total_episodes": len(LENGTHS)}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))


def write_lerobot_v2(root, version="v2.1", views=(FRONT,), store="video", lengths=LENGTHS):
    """One parquet and one mp4 a view for every episode, two episodes a chunk."""
    write_info(
        root, version, views, store,
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )  # fmt: skip
    tasks = [json.dumps({"task_index": index, "task": text}) for index, text in enumerate(SENTENCES[:2])]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    rows = [
        json.dumps({"episode_index": episode, "tasks": [SENTENCES[episode]], "length": length})
        for episode, length in enumerate(lengths)
    ]
    (root / "meta/episodes.jsonl").write_text("\n".join(rows) + "\n")
    for episode, length in enumerate(lengths):
        path = v2_data(root, episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        images = () if store == "video" else views
        pq.write_table(table_of(episode, length, sum(lengths[:episode]), images, store), path)
        for view in views if store == "video" else ():
            levels = [grey(episode, frame, view == WRIST) for frame in range(length)]
            write_video(v2_video(root, episode, view), levels)
    return root


def v2_data(root, episode):
    return root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"


def v2_video(root, episode, view=FRONT):
    return root / f"videos/chunk-{episode // 2:03d}/{view}/episode_{episode:06d}.mp4"


def write_lerobot_v3(root, views=(FRONT,), store="video", codec="libx264", index_name="task"):
    """Episodes 0 and 1 share the first parquet, 2 has the second; all share one mp4 a view."""
    write_info(
        root, "v3.0", views, store,
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )  # fmt: skip
    pq.write_table(pa.table({"task_index": [0, 1], index_name: list(SENTENCES[:2])}), root / "meta/tasks.parquet")
    starts = np.cumsum([0, *LENGTHS])
    images = () if store == "video" else views
    tables = [table_of(episode, length, starts[episode], images, store) for episode, length in enumerate(LENGTHS)]
    for file, parts in enumerate((tables[:2], tables[2:])):
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(parts), path, row_group_size=40)
    rows = []
    for episode, length in enumerate(LENGTHS):
        row = {"episode_index": episode, "tasks": [SENTENCES[episode]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": min(episode // 2, 1), "stats/action/max": [1.0]}
        row |= {"dataset_from_index": int(starts[episode]), "dataset_to_index": int(starts[episode + 1])}
        for view in views if store == "video" else ():
            row |= {f"videos/{view}/chunk_index": 0, f"videos/{view}/file_index": 0}
            row[f"videos/{view}/from_timestamp"] = starts[episode] / FPS
            row[f"videos/{view}/to_timestamp"] = starts[episode + 1] / FPS
        rows.append(row)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    for view in views if store == "video" else ():
        wrist = view == WRIST
        levels = [grey(episode, frame, wrist) for episode, length in enumerate(LENGTHS) for frame in range(length)]
        write_video(root / f"videos/{view}/chunk-000/file-000.mp4", levels, codec=codec)
    return root


def write_libero(root, late, stem="KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_demo", info=True):
    """One file of two demonstrations. late: observations are those after the action, as in LIBERO's own files."""
    root.mkdir(parents=True)
    with h5py.File(root / f"{stem}.hdf5", "w") as file:
        data = file.create_group("data")
        if info:
            data.attrs["problem_info"] = json.dumps({"language_instruction": ["shut ", "it"]})
        for demo in (0, 1):
            length = LENGTHS[demo]
            before = poses(length + 1, demo)
            seen = before[1:] if late else before[:-1]
            joints = np.arange(length + 1)[:, None] * 0.01 + np.arange(7)
            states = np.concatenate([np.zeros((length, 1)), joints[:-1], np.zeros((length, 20))], axis=1)
            group = data.create_group(f"demo_{demo}")
            group["states"], group["actions"] = states, libero_actions(length)
            observed = group.create_group("obs")
            observed["joint_states"] = joints[1:] if late else joints[:-1]
            observed["ee_states"] = seen[:, :6]
            observed["gripper_states"] = np.tile([0.03, -0.01], (length, 1))
            first = 1 if late else 0
            for name, wrist in (("agentview_rgb", False), ("eye_in_hand_rgb", True)):
                stack = np.stack([image(grey(demo, first + frame, wrist)) for frame in range(length)])
                stack[:, : HEIGHT // 2] //= 2  # stored bottom-up: what is stored above is the lower half
                stack[:, :, : WIDTH // 2] //= 2  # the left half
                observed[name] = stack
    return root


def libero_actions(length):
    """Action t says t in its first number; the gripper closes half way."""
    actions = np.zeros((length, 7))
    actions[:, 0] = np.arange(length) / 100
    actions[:, 3] = 1.0
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
    return actions


def write_npz(root, stride=3):
    root.mkdir(parents=True)
    for episode, length in enumerate(LENGTHS):
        images = np.stack([image(grey(episode, frame)) for frame in range(0, length, stride)])
        arrays = {"state": poses(length, episode), "action": commands(length, episode), "images_front": images}
        arrays |= {"instruction": SENTENCES[episode], "frame_stride": stride}
        np.savez(root / f"episode {episode}.npz", **arrays)
    return root
