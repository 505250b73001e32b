"""Why: the paradigms are compared on one dataset with and without images. If review moved a boundary in one of the
two, or one run normalised or sampled other clips than the next, the comparison would measure that instead of vision.
The boundaries here are moved by annotators, and the runs are those of configs/tiny."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.config import TrainConfig, load
from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, proposal_digest
from la4vla.data.inspect.verify import verify
from la4vla.data.mixture import Schedule
from la4vla.data.setup import prepare
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from tests.construct.recorded import STRIDE, episode, recorded
from tests.fixtures import SPEC, encode

PARADIGMS = {"la": ["la"], "vla": ["vla"], "la_vla": ["la", "vla"], "mixpt": ["la", "vla"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """out_dir of a reviewed dataset: of each episode's candidates the first ends later, the second is bad."""
    config = recorded(tmp_path_factory.mktemp("twin"))
    run(config, "propose")
    out = Path(config.out_dir)
    reviews = Reviews.open(out / REVIEWS, episode_digests(Ledger(out / steps.READ)))
    for row in Ledger(out / steps.CANDIDATES):
        for number, raw in enumerate(row["candidates"]):
            item = Candidate.from_dict(raw)
            moved = 4 if number == 0 else 0
            for annotator in ("ann", "bob"):
                name = candidate_key(row["key"], item.start)
                quality = 1 if number == 1 else 3
                of = proposal_digest(item)
                reviews.put(Score(name, annotator, quality, 2, item.start, item.end + moved, "", of))
    reviews.close()
    config.filter.by = "human"
    run(config, "shards")
    return out


def clips(folder, views=()):
    index = read_index(folder)
    return {clip.key: clip for number in range(len(index.shards)) for clip in read_shard(index, number, views)}


def test_la_and_vla_are_twins_after_a_review(built):
    la, vla = clips(built / "la"), clips(built / "vla", ("corner4",))
    proposed = list(Ledger(built / steps.CANDIDATES))
    spans = {(row["key"], item["start"], item["end"]) for row in proposed for item in row["candidates"]}
    assert len(la) == len(spans) - len(proposed)
    assert len({(clip.episode, *clip.span) for clip in la.values()} - spans) == len(proposed)
    assert la.keys() == vla.keys()
    for key, clip in la.items():
        twin = vla[key]
        for name in ("instruction", "primitive", "object_status", "task", "episode", "span", "fps", "quality"):
            assert vars(clip)[name] == vars(twin)[name], (key, name)
        start, end = clip.span
        source = episode(int(clip.episode.rsplit("-", 1)[1]))
        for ours, theirs, true in (
            (clip.state, twin.state, source.state),
            (clip.action, twin.action, source.action),
        ):
            assert ours.tobytes() == theirs.tobytes() == true[start:end].tobytes()
        assert start % STRIDE == 0 and not clip.frames
        for t, image in twin.frames["corner4"].items():
            assert abs(simplejpeg.decode_jpeg(image).mean() - 2 * (start + t)) < 1


@pytest.mark.parametrize("folder", ["la", "vla", "task"])
def test_all_folders_are_what_their_indexes_say(built, folder):
    assert verify(built / folder).ok


def paradigm(built, name):
    """The config of a paradigm and its data, as a run would open it."""
    paths = [f"data.sources.{source}.path={built / source}" for source in ("la", "vla", "task")]
    config = load(f"configs/tiny/{name}.yaml", [*paths, "data.streams=2"])
    assert isinstance(config, TrainConfig)
    return config, prepare(config, SPEC, encode)


def samples(source):
    """(clip, frame) of every sample of one pass."""
    found = set()
    for stream in source.streams:
        for block in stream.blocks(0):
            order = stream.shuffled(block)
            for address in (order[number] for number in range(block.samples)):
                found.add((source.index.shards[address.shard].keys[address.clip], address.frame))
    return found


@pytest.mark.parametrize("name", PARADIGMS)
def test_every_paradigm_sees_the_same_clips(built, name):
    config, setup = paradigm(built, name)
    spans = {key: clip.span for key, clip in clips(built / "la").items()}
    assert list(setup.sources) == PARADIGMS[name]
    for kind, source in setup.sources.items():
        stride = 1 if kind == "la" else STRIDE
        every = {(key, frame) for key, (start, end) in spans.items() for frame in range(0, end - start, stride)}
        assert samples(source) == every
    schedule = Schedule(config)
    drawn = sum(sum(schedule.total(stage).values()) for stage in config.stages)
    assert drawn == 600 * 32


@pytest.mark.parametrize("name", PARADIGMS)
def test_every_paradigm_normalises_alike(built, name):
    ours, theirs = (paradigm(built, which)[1].only_robot.chain.normalize for which in (name, "la"))
    for one, other in ((ours.state, theirs.state), (ours.action, theirs.action)):
        assert all(np.array_equal(vars(one)[field], vars(other)[field]) for field in vars(one))


def test_the_twin_read_as_la_starts_exactly_where_it_does_with_images(built):
    """For a comparison in which even the starts are the same: the folder with images, used as kind `la`."""
    _, setup = paradigm(built, "vla")
    config = load("configs/tiny/la.yaml", [f"data.sources.la.path={built / 'vla'}", "data.streams=2"])
    blind = prepare(config, SPEC, encode).sources["la"]
    assert blind.views == () and samples(blind) == samples(setup.sources["vla"])
