"""Why: conversations must mix with clips as exactly, resume as exactly and depend as little on ranks and threads as
everything else does, and must not move a single sample of the clips beside them."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from la4vla.config import TrainConfig
from la4vla.config.train import validate
from la4vla.data.explain import explain
from la4vla.data.loader import Loader
from la4vla.data.reader import Reader, StepData
from la4vla.data.setup import Setup, fingerprints, prepare, prepare_texts
from la4vla.data.shards.index import read_index
from la4vla.data.shards.texts import StoredImage
from la4vla.types import NOT_COUNTED, SOURCE_KINDS, Batch, TextBatch, UserError
from tests.data.test_data_reader import rows as clip_rows
from tests.data.test_data_reader import same_batch
from tests.fixtures import SPEC, WordEncoder, encode, make_text, train_config, write_shards, write_texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    write_shards(root / "la", clips=20, shards=5)
    write_shards(root / "vla", clips=12, shards=4, views=["front", "wrist"], frame_stride=2)
    write_texts(root / "text", 30, shards=6)
    return root


def mixed(folders: Path) -> TrainConfig:
    config = train_config({kind: (folders / kind, kind) for kind in ("vla", "text", "la")}, steps=5)
    config.stages["second"] = replace(config.stages["first"], mixture={"text": 3.0, "la": 1.0}, steps=4, micro_batch=3)
    return config


def alone(folders: Path) -> TrainConfig:
    return train_config({"text": (folders / "text", "text")}, steps=8)


def set_up(config: TrainConfig) -> Setup:
    if {source.kind for source in config.data.sources.values()} == {"text"}:
        return prepare_texts(config, WordEncoder())
    return prepare(config, SPEC, encode, encoder=WordEncoder())


def steps(config: TrainConfig, rank=0, world=1, threads=2, start=("first", 0)) -> list[StepData]:
    config = replace(config, data=replace(config.data, decode_threads=threads))
    with Reader(config, set_up(config), rank, world) as reader:
        return list(reader.steps(*start))


def texts(data: StepData) -> list[TextBatch]:
    return [batch for batch in data.batches if isinstance(batch, TextBatch)]


def clips(data: StepData) -> StepData:
    return replace(data, batches=tuple(batch for batch in data.batches if isinstance(batch, Batch)))


def rows(data: StepData) -> list[tuple]:
    """Each conversation's key, tokens, labels without padding, and pixels as bytes."""
    found = []
    for batch in texts(data):
        counts = batch.images["image_counts"].tolist() if batch.images else [0] * batch.rows
        images = iter(batch.images["pixel_values"] if batch.images else [])
        for row, count in enumerate(counts):
            real = batch.text_mask_BL[row]
            shown = [next(images).numpy().tobytes() for _ in range(count)]
            found.append(
                (batch.keys[row], batch.input_ids_BL[row][real].tolist(), batch.labels_BL[row][real].tolist(), shown)
            )
    return sorted(found)


def same(one: StepData, two: StepData) -> bool:
    return (one.stage, one.stage_step, one.step, one.samples) == (
        two.stage,
        two.stage_step,
        two.step,
        two.samples,
    ) and all(itertools.starmap(same_of_any_kind, zip(one.batches, two.batches, strict=True)))


def same_of_any_kind(one: Batch | TextBatch, two: Batch | TextBatch) -> bool:
    if isinstance(one, Batch) or isinstance(two, Batch):
        return isinstance(one, Batch) and isinstance(two, Batch) and same_batch(one, two)
    images = one.images.keys() == two.images.keys() and all(
        torch.equal(one.images[n], two.images[n]) for n in one.images
    )
    pairs = [(one.__dict__[name], two.__dict__[name]) for name in one.__dict__ if name != "images"]
    return images and all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("make", [mixed, alone])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_step_is_the_same_set_on_any_ranks_and_threads(folders, make, world, threads):
    config = make(folders)
    whole = steps(config)
    ranks = [steps(config, rank, world, threads) for rank in range(world)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert sorted(row for part in parts for row in rows(part)) == rows(whole[step])
        assert {sum(batch.rows for batch in part.batches) for part in parts} == {16 // world}
        assert len({tuple(batch.kind for batch in part.batches) for part in parts}) == 1


@pytest.mark.parametrize("make", [mixed, alone])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("first", [1, 3, 4, 5, 7])
def test_resume_is_the_continuation(folders, make, world, first):
    config = make(folders)
    whole = steps(config, world - 1, world)
    length = config.stages["first"].steps
    start = ("first", first) if first < length else ("second", first - length)
    again = steps(config, world - 1, world, start=start)
    assert len(again) == len(whole) - first
    assert all(itertools.starmap(same, zip(again, whole[first:], strict=True)))


def test_kinds_come_in_their_order_and_mix_exactly(folders):
    config = mixed(folders)
    data = steps(config)
    for step in data:
        kinds = [batch.kind for batch in step.batches]
        assert kinds == sorted(kinds, key=SOURCE_KINDS.index)
        counts = {kind: sum(batch.rows for batch in step.batches if batch.kind == kind) for kind in set(kinds)}
        assert counts == step.samples
    for stage, shares in (
        ("first", {"vla": 1 / 3, "text": 1 / 3, "la": 1 / 3}),
        ("second", {"text": 0.75, "la": 0.25}),
    ):
        total = {name: 0 for name in shares}
        for step in (step for step in data if step.stage == stage):
            for name in shares:
                total[name] += step.samples.get(name, 0)
                assert abs(total[name] - 16 * (step.stage_step + 1) * shares[name]) < 2 * config.data.streams


def test_a_pass_holds_every_row_once(folders):
    config = train_config({"text": (folders / "text", "text")}, steps=9, global_batch=20)
    keys = [key for step in steps(config) for batch in texts(step) for key in batch.keys]
    index = read_index(folders / "text", "texts")
    for stream in set_up(config).texts["text"].streams:
        own = [f"text/{key}" for shard in stream.shards for key in index.shards[shard].keys]
        seen = [key for key in keys if key in own]
        assert len(seen) == 45 and sorted(seen[: len(own)]) == sorted(own)


def test_text_beside_them_changes_no_sample_of_the_clips(folders):
    """The same positions of `la`, read in a run without conversations."""
    with_texts = train_config({"la": (folders / "la", "la"), "text": (folders / "text", "text")}, steps=6)
    without = train_config({"la": (folders / "la", "la")}, steps=6, global_batch=8)
    beside = [clip_rows(clips(step)) for step in steps(with_texts)]
    with Reader(without, prepare(without, SPEC, encode), 0, 1) as reader:
        assert beside == [clip_rows(step) for step in reader.steps("first", 0)]


@pytest.mark.slow
def test_the_loader_process_carries_images_and_labels(folders):
    config = mixed(folders)
    here = steps(config)
    with Loader(config, set_up(config), 0, 1, ("first", 0)) as loader:
        there = list(loader)
    assert any(batch.images for step in there for batch in texts(step))
    assert all(itertools.starmap(same, zip(here, there, strict=True)))


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Twelve rows, of which the sixth has a JPEG that ends too early; index and hashes are right."""
    made = [make_text(number, image_size=32) for number in range(12)]
    image = made[5].images[1]
    broken = StoredImage(image.view, image.t, bytes(image.jpeg)[:-20])
    made[5] = replace(made[5], images=(made[5].images[0], broken))
    write_texts(tmp_path / "damaged", made, shards=4)
    return tmp_path / "damaged"


def test_an_unreadable_image_stops_the_run_and_is_named(damaged):
    config = train_config({"text": (damaged, "text")}, steps=3, global_batch=4)
    sentence = r"text/row-00005: shard shard-\d+\.tar, image 1 \(view front, 1\): .*max_bad_samples"
    with pytest.raises(UserError, match=sentence):
        steps(config)


def test_tolerated_bad_rows_are_masked_and_counted(damaged):
    config = train_config({"text": (damaged, "text")}, steps=3, global_batch=4)
    config.data.max_bad_samples = 1
    data = steps(config)
    batches = [batch for step in data for batch in texts(step)]
    bad = [(batch, batch.keys.index("text/row-00005")) for batch in batches if "text/row-00005" in batch.keys]
    assert len(bad) == data[-1].bad_samples == 1
    batch, row = bad[0]
    assert (batch.labels_BL[row] == NOT_COUNTED).all() and batch.text_mask_BL[row].any()
    others = [number for number in range(batch.rows) if number != row]
    assert all((batch.labels_BL[number] != NOT_COUNTED).any() for number in others)


def test_a_row_that_is_too_long_is_the_encoders_sentence(tmp_path):
    rows = [make_text(number) for number in range(4)]
    rows[2] = replace(rows[2], turns=(rows[2].turns[0], replace(rows[2].turns[1], text="word " * 100)))
    write_texts(tmp_path / "texts", rows, shards=4)
    with pytest.raises(UserError, match=r"text/row-00002: \d+ tokens, and the model takes 64"):
        steps(train_config({"text": (tmp_path / "texts", "text")}, global_batch=4))


def test_folders_of_the_wrong_kind_are_one_sentence(folders):
    with pytest.raises(UserError, match=r"data\.sources\.a\.kind is la, and .*text holds texts; set it to text"):
        prepare(train_config({"a": (folders / "text", "la")}), SPEC, encode)
    with pytest.raises(UserError, match=r"data\.sources\.a\.kind is text, and .*la holds clips; set it to one of la,"):
        prepare(train_config({"a": (folders / "la", "text")}), SPEC, encode, encoder=WordEncoder())
    with pytest.raises(UserError, match=r"data\.sources\.la\.kind is la, and this model learns conversations alone"):
        prepare_texts(train_config({"la": (folders / "la", "la")}), WordEncoder())


def test_conversations_need_a_model_that_writes(folders):
    with pytest.raises(UserError, match=r"text is a source of conversations .* no language head"):
        prepare(mixed(folders), SPEC, encode)


def test_settings_that_a_conversation_has_no_use_for_are_refused(folders):
    config = mixed(folders)
    config.data.sources["text"].views = ["front"]
    with pytest.raises(UserError, match=r"data\.sources\.text\.views is set"):
        set_up(config)
    config = mixed(folders)
    config.data.stats_source = "text"
    with pytest.raises(UserError, match=r"data\.stats_source is text, a source of conversations"):
        set_up(config)


def test_a_run_of_texts_alone_has_no_robot(folders):
    config = alone(folders)
    validate(config)
    setup = set_up(config)
    assert not setup.robots and list(setup.texts) == ["text"] and list(fingerprints(setup)) == ["text"]
    text = explain(config, setup, 2)
    assert "a step is 16 = 16 text samples = 2 ranks x (2 text) micro-batches of 4" in text
    assert "text: 128 samples = 4.27 passes over 30" in text
    assert "warning: text: some texts are seen" in text, "6 shards do not share evenly into 4 streams"


def test_the_arithmetic_of_a_mixed_run_is_printed(folders):
    config = mixed(folders)
    text = explain(config, set_up(config), 1)
    assert re.search(r"stage first: a step is 16 = [\d.]+ la \+ [\d.]+ text \+ [\d.]+ vla samples", text)
    assert "stage second: a step is 16 = 4 la + 12 text samples" in text
    assert list(fingerprints(set_up(config))) == ["vla", "la", "text"]
