"""RLDS datasets written as TFDS lays them out: TFRecords with checksums, `features.json`, `dataset_info.json`."""

import json
import struct
from pathlib import Path

import numpy as np
import simplejpeg

from la4vla.construct.readers.tfrecord import masked_crc

TABLE = Path(__file__).parent / "readers" / "language_table"
"""Real episodes of LanguageTable's simulator (README there)."""
SAMPLE = Path(__file__).parents[3] / "shared" / "language-table" / "sample"
"""49 of them, where they are."""

TFDS = "tensorflow_datasets.core.features."


def tensor(dtype, *shape, encoding="none"):
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    about = {"dtype": dtype, "shape": dimensions, "encoding": encoding}
    return {"pythonClassName": f"{TFDS}tensor_feature.Tensor", "tensor": about}


def picture(height, width, channels=3, dtype="uint8", form="jpeg"):
    shape = {"dimensions": [str(size) for size in (height, width, channels)]}
    about = {"dtype": dtype, "shape": shape, "encodingFormat": form}
    return {"pythonClassName": f"{TFDS}image_feature.Image", "image": about}


def text():
    return {"pythonClassName": f"{TFDS}text_feature.Text", "text": {}}


def group(**features):
    return {"pythonClassName": f"{TFDS}features_dict.FeaturesDict", "featuresDict": {"features": features}}


def varint(value):
    value &= (1 << 64) - 1
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values):
    """A tf.train.Feature of byte strings, floats or whole numbers."""
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    flat = np.asarray(values).reshape(-1)
    if flat.dtype.kind == "f":
        return field(2, field(1, flat.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(value)) for value in flat)))


def features(values):
    entries = (field(1, name.encode()) + field(2, feature(value)) for name, value in values.items())
    return b"".join(field(1, entry) for entry in entries)


def example(values):
    return field(1, features(values))


def sequence(context, lists):
    entries = (
        field(1, name.encode()) + field(2, b"".join(field(1, feature(item)) for item in items))
        for name, items in lists.items()
    )
    return field(1, features(context)) + field(2, b"".join(field(1, entry) for entry in entries))


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            for part in (length, record):
                file.write(part + struct.pack("<I", masked_crc(part)))


def write_rlds(folder, steps, episodes, files=(1,), **of_episode):
    """steps, of_episode: features as tensor() makes them. episodes: names as in a record -> values. files: episodes of
    each file."""
    folder.mkdir(parents=True, exist_ok=True)
    sequence_of = {"pythonClassName": f"{TFDS}dataset_feature.Dataset", "sequence": {"feature": steps, "length": "-1"}}
    (folder / "features.json").write_text(json.dumps(group(steps=sequence_of, **of_episode)))
    split = {
        "name": "train",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(count) for count in files],
    }
    about = {"name": "made", "fileFormat": "tfrecord", "version": "1.0.0", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    left = [example(values) for values in episodes]
    for number, count in enumerate(files):
        write_records(folder / f"made-train.tfrecord-{number:05d}-of-{len(files):05d}", left[:count])
        left = left[count:]
    return folder


def jpeg(number, height=16, width=24):
    return simplejpeg.encode_jpeg(np.full((height, width, 3), number, np.uint8))
