"""Why: a run must be the same run on 1, 2 or 4 ranks, with any number of decode threads, and after a resume at any step
(pains 10, 13, 14). And what a rank hands to the model must be masked where nothing is (pain 18)."""

import itertools
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.data.explain import explain
from la4vla.data.reader import Reader, StepData, window
from la4vla.data.robots import slot_order
from la4vla.data.setup import fingerprints, prepare, view_sizes
from la4vla.data.shards.writer import View, read_index
from la4vla.manifest import Checkpoint
from la4vla.types import KINDS, Batch, UserError
from tests.fixtures import ARM, POSE, SPEC, encode, make_clip, train_config, write_shards

FRONT = {"front": View(32, 32)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    write_shards(root / "la", clips=20, shards=5)
    write_shards(root / "vla", clips=12, shards=4, views=["front", "wrist"], frame_stride=2)
    return root


def two_stages(folders: Path) -> TrainConfig:
    config = train_config({"la": (folders / "la", "la"), "vla": (folders / "vla", "vla")}, steps=5)
    config.stages["second"] = replace(config.stages["first"], mixture={"vla": 3.0, "la": 1.0}, steps=4, micro_batch=3)
    return config


def steps(config: TrainConfig, rank=0, world=1, threads=2, start=("first", 0)) -> list[StepData]:
    config = replace(config, data=replace(config.data, decode_threads=threads))
    with Reader(config, prepare(config, SPEC, encode), rank, world) as reader:
        return list(reader.steps(*start))


def rows(data: StepData) -> dict[str, list[tuple]]:
    """key -> the row's tensors as bytes, its prompt without padding; a list, as a step may hold a key twice."""
    found: dict[str, list[tuple]] = {}
    for batch in data.batches:
        images = iter(batch.images_NCHW if batch.images_NCHW is not None else [])
        for row in range(batch.rows):
            ids = batch.input_ids_BL[row][batch.text_mask_BL[row]].tolist()
            shown = [next(images).numpy().tobytes() for _ in range(ids.count(SPEC.image_token_id) // SPEC.image_tokens)]
            numbers = [
                tensor[row].numpy().tobytes()
                for tensor in (
                    batch.state_BS,
                    batch.actions_BTA,
                    batch.action_mask_BTA,
                    batch.noise_BTA,
                    batch.time_B,
                )
            ]
            found.setdefault(batch.keys[row], []).append((ids, shown, numbers))
    return {key: sorted(values) for key, values in found.items()}


def merged(parts: list[StepData]) -> dict[str, list[tuple]]:
    found: dict[str, list[tuple]] = {}
    for part in parts:
        for key, values in rows(part).items():
            found.setdefault(key, []).extend(values)
    return {key: sorted(values) for key, values in found.items()}


def same(one: StepData, two: StepData) -> bool:
    """Equal to the bit, batch by batch."""
    return (one.stage, one.stage_step, one.step, one.samples) == (
        two.stage,
        two.stage_step,
        two.step,
        two.samples,
    ) and all(itertools.starmap(same_batch, zip(one.batches, two.batches, strict=True)))


def same_batch(one: Batch, two: Batch) -> bool:
    pairs = [(one.__dict__[name], two.__dict__[name]) for name in one.__dict__]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_step_is_the_same_set_on_any_ranks_and_threads(folders, world, threads):
    config = two_stages(folders)
    alone = steps(config)
    ranks = [steps(config, rank, world, threads) for rank in range(world)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert merged(list(parts)) == rows(alone[step])
        sizes = {sum(batch.rows for batch in part.batches) for part in parts}
        assert sizes == {16 // world}, "ranks carry equal loads"
        kinds = {tuple(batch.kind for batch in part.batches) for part in parts}
        assert len(kinds) == 1, "ranks run the same kinds in the same order"


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 4])
def test_passes_are_partitions(folders, world, threads):
    """Of what k and a bit rounds of a stream hold, each of its samples was seen k or k + 1 times."""
    index = read_index(folders / "la")
    config = train_config({"la": (folders / "la", "la")}, steps=40, global_batch=8)
    seen = Counter(
        key
        for rank in range(world)
        for step in steps(config, rank, world, threads)
        for batch in step.batches
        for key in batch.keys
    )
    streams = prepare(config, SPEC, encode).sources["la"].streams
    each = 40 * 8 // 4
    for stream in streams:
        keys = [
            f"la/{key}/{frame}"
            for shard in stream.shards
            for key, length in zip(index.shards[shard].keys, index.shards[shard].lengths, strict=True)
            for frame in range(length)
        ]
        assert sum(seen[key] for key in keys) == each
        assert {seen[key] for key in keys} <= {each // stream.samples, -(-each // stream.samples)}


@pytest.mark.parametrize("start", [*(("first", step) for step in range(6)), *(("second", step) for step in range(4))])
@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_the_continuation(folders, start, world):
    config = two_stages(folders)
    whole = steps(config, world - 1, world)
    first = start[1] + (5 if start[0] == "second" else 0)
    again = steps(config, world - 1, world, start=start)
    assert len(again) == len(whole) - first
    assert all(itertools.starmap(same, zip(again, whole[first:], strict=True)))


def test_memory_knobs_change_no_sample(folders):
    config = two_stages(folders)
    other = replace(config, stages={name: replace(stage, micro_batch=7) for name, stage in config.stages.items()})
    for one, two in zip(steps(config), steps(other), strict=True):
        assert rows(one) == rows(two)
        cut = {kind: [batch.rows for batch in two.batches if batch.kind == kind] for kind in KINDS}
        whole = {kind: sum(batch.rows for batch in one.batches if batch.kind == kind) for kind in KINDS}
        assert cut == {kind: [7] * (count // 7) + [count % 7] * (count % 7 > 0) for kind, count in whole.items()}
        assert {batch.rows for batch in two.batches} != {batch.rows for batch in one.batches}


def test_small_blocks_read_every_sample_too(folders):
    config = train_config({"la": (folders / "la", "la")}, steps=40, global_batch=8)
    config.data.shuffle_bytes = 1
    seen = {key for step in steps(config) for batch in step.batches for key in batch.keys}
    assert len(seen) == read_index(folders / "la").samples


def test_la_comes_first_and_is_blind(folders):
    for data in steps(two_stages(folders)):
        kinds = [batch.kind for batch in data.batches]
        assert kinds == sorted(kinds)
        for batch in data.batches:
            blind = batch.images_NCHW is None and batch.image_index is None
            assert blind == (batch.kind == "la")
            assert (SPEC.image_token_id in batch.input_ids_BL) == (batch.kind == "vla")


def test_leaky_rows_show_images_and_stand_between(folders):
    """Vision's micro-batches come last; and the folder serves as three kinds with the same samples."""
    config = train_config(
        {name: (folders / "vla", name) for name in ("vla", "la_leaky", "la")}, steps=4, global_batch=12
    )
    for data in steps(config):
        assert [batch.kind for batch in data.batches] == sorted(batch.kind for batch in data.batches)
        for batch in data.batches:
            assert (batch.images_NCHW is None) == (batch.kind == "la")
    one, two = (
        [batch for data in steps(train_config({"same": (folders / "vla", kind)}, steps=4)) for batch in data.batches]
        for kind in ("la_leaky", "vla")
    )
    assert {batch.kind for batch in one} == {"la_leaky"}
    for leaky, seeing in zip(one, two, strict=True):
        assert leaky.images_NCHW is not None and seeing.images_NCHW is not None
        assert leaky.keys == seeing.keys and torch.equal(leaky.images_NCHW, seeing.images_NCHW)
        assert torch.equal(leaky.input_ids_BL, seeing.input_ids_BL) and torch.equal(leaky.noise_BTA, seeing.noise_BTA)


def test_image_shards_serve_as_la(folders):
    config = train_config({"blind": (folders / "vla", "la")}, steps=4)
    batches = [batch for data in steps(config) for batch in data.batches]
    assert all(batch.images_NCHW is None for batch in batches)


def test_image_tokens_point_at_their_images(folders):
    config = train_config({"vla": (folders / "vla", "vla")}, steps=2)
    for batch in (batch for data in steps(config) for batch in data.batches):
        images, index = batch.images_NCHW, batch.image_index
        assert images is not None and index is not None
        assert images.shape == (2 * batch.rows, 3, 16, 16) and images.dtype == torch.uint8
        assert len(index) == len(images) * SPEC.image_tokens
        assert (batch.input_ids_BL.flatten()[index] == SPEC.image_token_id).all()
        of_row = index.reshape(batch.rows, -1) // batch.input_ids_BL.shape[1]
        assert (of_row == torch.arange(batch.rows)[:, None]).all()


def test_views_are_chosen_by_name(folders):
    config = train_config({"vla": (folders / "vla", "vla")}, steps=1)
    config.data.sources["vla"].views = ["wrist"]
    setup = prepare(config, SPEC, encode)
    assert setup.only_robot.chain.views == ("wrist",)
    batch = steps(config)[0].batches[0]
    assert batch.images_NCHW is not None and len(batch.images_NCHW) == batch.rows
    config.data.sources["vla"].views = ["wirst"]
    with pytest.raises(UserError, match=r"`wirst` is not in .*; it has front, wrist"):
        prepare(config, SPEC, encode)


def test_slots_of_several_sources():
    assert slot_order({"a": ["front"], "b": ["front", "wrist"], "c": []}) == ("front", "wrist")
    with pytest.raises(UserError, match="list them as front, wrist"):
        slot_order({"a": ["front", "wrist"], "b": ["wrist", "front"]})


@pytest.mark.parametrize("frame", range(9))
def test_windows_past_the_end_are_masked_never_repeated(folders, frame):
    clip = make_clip(7, 9)
    sample = window(clip, frame, SPEC.horizon, "la", "la")
    count = min(SPEC.horizon, 9 - frame)
    assert sample.action_valid.tolist() == [True] * count + [False] * (SPEC.horizon - count)
    assert sample.action is not None and sample.action_states is not None
    assert np.array_equal(sample.action[:count], clip.action[frame : frame + count])
    assert np.array_equal(sample.action_states[:count], clip.state[frame : frame + count])
    assert not sample.action[count:].any()
    assert np.array_equal(sample.state, clip.state[frame])


def test_masks_reach_the_batch(folders):
    index = read_index(folders / "la")
    lengths = {key: length for shard in index.shards for key, length in zip(shard.keys, shard.lengths, strict=True)}
    for batch in (batch for data in steps(train_config({"la": (folders / "la", "la")})) for batch in data.batches):
        for row, name in enumerate(batch.keys):
            _, key, frame = name.split("/")
            valid = min(SPEC.horizon, lengths[key] - int(frame))
            mask = batch.action_mask_BTA[row]
            assert mask[:valid, :4].all() and not mask[valid:].any() and not mask[:, 4:].any()
            assert not batch.actions_BTA[row][~mask].any()
        assert batch.state_mask_BS[:, :4].all() and not batch.state_mask_BS[:, 4:].any()
        assert batch.actions_BTA.abs().max() <= 1 and batch.state_BS.abs().max() <= 1


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Twelve clips of which the sixth has a JPEG that ends too early; index and hashes are right."""
    clips = [make_clip(number, 4, views=FRONT) for number in range(12)]
    image = bytes(clips[5].frames["front"][2])
    frames = {"front": {**clips[5].frames["front"], 2: image[:-20]}}
    clips[5] = replace(clips[5], frames=frames)
    write_shards(tmp_path / "damaged", clips, shards=4, views=FRONT)
    return tmp_path / "damaged"


def test_an_unreadable_image_stops_the_run_and_is_named(damaged):
    config = train_config({"vla": (damaged, "vla")}, steps=6, global_batch=8)
    with pytest.raises(
        UserError, match=r"vla/clip-00005/2: shard shard-\d+\.tar, view front, frame 2.*max_bad_samples"
    ):
        steps(config)


def test_tolerated_bad_samples_are_masked_and_counted(damaged):
    config = train_config({"vla": (damaged, "vla")}, steps=6, global_batch=8)
    config.data.max_bad_samples = 1
    data = steps(config)
    bad = [
        (batch, row)
        for step in data
        for batch in step.batches
        for row, key in enumerate(batch.keys)
        if key == "vla/clip-00005/2"
    ]
    assert len(bad) == data[-1].bad_samples == 1
    batch, row = bad[0]
    assert not batch.action_mask_BTA[row].any() and batch.action_mask_BTA.any()
    assert not batch.actions_BTA[row].any()


@pytest.mark.parametrize(("alpha", "beta"), [(9.0, 1.0), (1.0, 9.0), (2.0, 2.0), (0.2, 0.2)])
def test_flow_times_are_drawn_as_the_config_says(folders, alpha, beta):
    """Mean and variance of Beta(alpha, beta), over 320 samples."""
    config = train_config({"la": (folders / "la", "la")}, steps=20)
    config.flow.time_alpha, config.flow.time_beta = alpha, beta
    times = torch.cat([batch.time_B for data in steps(config) for batch in data.batches])
    total = alpha + beta
    assert float(times.mean()) == pytest.approx(alpha / total, abs=0.06)
    assert float(times.var()) == pytest.approx(alpha * beta / total**2 / (total + 1), rel=0.25)


@pytest.mark.parametrize(("noise", "spread"), [("uniform", 1 / 3), ("normal", 1.0)])
def test_the_flow_starts_from_the_noise_of_the_config(folders, noise, spread):
    config = train_config({"la": (folders / "la", "la")})
    config.flow.noise = noise
    drawn = torch.cat([batch.noise_BTA.flatten() for data in steps(config) for batch in data.batches])
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(drawn.var()) == pytest.approx(spread, rel=0.1)
    assert (float(drawn.abs().max()) > 1.0) == (noise == "normal")


@pytest.mark.parametrize("world", [3, 8])
def test_ranks_must_divide_streams(folders, world):
    with pytest.raises(UserError, match=f"shared by {world} ranks"):
        steps(two_stages(folders), 0, world)


def test_robots_that_differ_under_one_name_are_refused(folders, tmp_path):
    write_shards(tmp_path / "pose", 8, 4, embodiment=replace(POSE, name=ARM.name))
    with pytest.raises(UserError, match=r"a and b have different embodiments of the name test_arm .*another name"):
        prepare(train_config({"a": (folders / "la", "la"), "b": (tmp_path / "pose", "la")}), SPEC, encode)


@pytest.mark.parametrize("kind", ["vla", "la_leaky"])
def test_la_shards_cannot_serve_as_a_kind_with_images(folders, kind):
    with pytest.raises(UserError, match="holds no images"):
        prepare(train_config({"a": (folders / "la", kind)}), SPEC, encode)


def test_too_few_shards_for_the_streams(folders):
    with pytest.raises(UserError, match=r"la: 5 shards but data.streams=8"):
        prepare(train_config({"la": (folders / "la", "la")}, streams=8), SPEC, encode)


def test_statistics_of_a_source_of_another_robot_are_refused(folders, tmp_path):
    """Also of one that is in no mixture."""
    mirrored = replace(ARM, action=replace(ARM.action, gripper_open=-1.0))
    write_shards(tmp_path / "other", clips=8, embodiment=mirrored)
    config = train_config({"la": (folders / "la", "la"), "other": (tmp_path / "other", "la")}, {"la": 1.0})
    config.data.stats_source = "other"
    with pytest.raises(UserError, match="different embodiments"):
        prepare(config, SPEC, encode)


def test_a_source_outside_every_mixture_is_not_opened(folders):
    config = train_config({"la": (folders / "la", "la"), "other": ("/nowhere", "la")}, {"la": 1.0})
    assert list(prepare(config, SPEC, encode).sources) == ["la"]


def test_a_folder_written_again_with_other_clips_has_another_fingerprint(folders, tmp_path):
    def written(clips: int, shards: int) -> dict[str, str]:
        shutil.rmtree(tmp_path / "la", ignore_errors=True)
        write_shards(tmp_path / "la", clips=clips, shards=shards)
        sources = {"la": (tmp_path / "la", "la"), "vla": (folders / "vla", "vla")}
        return fingerprints(prepare(train_config(sources), SPEC, encode))

    first = written(20, 5)
    assert list(first) == ["la", "vla"] and len(first["la"]) == 64
    assert written(20, 5) == first
    assert {written(clips, shards)["la"] for clips, shards in ((19, 5), (20, 4))}.isdisjoint(first.values())
    assert written(20, 4)["vla"] == first["vla"]


def test_every_size_of_a_view_is_known(tmp_path):
    """The sources may have been recorded by different cameras; a server compares a client's images with all of them."""
    write_shards(tmp_path / "small", views={"front": View(8, 8), "wrist": View(6, 8)})
    write_shards(tmp_path / "large", views={"front": View(12, 16), "wrist": View(6, 8)})
    sources = {name: (tmp_path / name, "vla") for name in ("small", "large")}
    setup = prepare(train_config({**sources, "la": (tmp_path / "small", "la")}), SPEC, encode)
    assert view_sizes(setup, ARM.name) == {"front": [[8, 8], [12, 16]], "wrist": [[6, 8]]}


def write_manifest(folder: Path, config: TrainConfig) -> None:
    setup = prepare(config, SPEC, encode)
    folder.mkdir(parents=True)
    made = manifest.Manifest(
        schema=manifest.SCHEMA_VERSION,
        stage="first",
        stage_step=1,
        step=1,
        skipped_steps=0,
        config={},
        learner="policy",
        model={},
        base={},
        input_spec={},
        robots=[asdict(robot) for robot in setup.trained_robots],
        text={},
        sources=fingerprints(setup),
        weights_sha256="",
        training_sha256="",
        ema_sha256="",
        tokenizer_sha256={},
        git_sha="",
        versions={},
        world_size=1,
    )
    made.write(folder)
    (folder / manifest.COMPLETE).touch()


def test_finetuning_keeps_the_statistics_of_the_weights(folders, tmp_path):
    pretrain = train_config({"la": (folders / "la", "la")})
    write_manifest(tmp_path / "checkpoint", pretrain)
    config = train_config({"vla": (folders / "vla", "vla")})
    own = prepare(config, SPEC, encode).only_robot.chain.normalize
    made = Checkpoint.open(tmp_path / "checkpoint")
    assert (
        prepare(config, SPEC, encode, made).only_robot.chain.normalize
        == prepare(pretrain, SPEC, encode).only_robot.chain.normalize
        != own
    )
    config.data.stats_source = "vla"
    assert prepare(config, SPEC, encode, made).only_robot.chain.normalize == own
    config.data.stats_source, config.data.action = "", "delta_to_state"
    with pytest.raises(UserError, match=r"trained with data\.action=recorded, not delta_to_state"):
        prepare(config, SPEC, encode, made)
    config.data.action, config.data.normalization = "recorded", "mean_std"
    with pytest.raises(UserError, match=r"trained with data\.normalization=q01_q99, not mean_std"):
        prepare(config, SPEC, encode, made)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other_arm"}, "name is `other_arm`, the data's is `test_arm`"),
        ({"control_hz": 20.0}, "control_hz is `20.0`, the data's is `10.0`"),
        ({"state": replace(ARM.state, frame="tool")}, "state.frame is `tool`"),
        ({"action": replace(ARM.action, gripper_open=-1.0)}, "action.gripper_open is `-1.0`"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["init_from", "resume"])
def test_statistics_of_another_robot_are_not_inherited(folders, tmp_path, change, words, own):
    """Same dims, other meaning: the names alone would let a mirrored gripper through."""
    write_shards(tmp_path / "other", clips=8, embodiment=replace(ARM, **change))
    config = train_config({"la": (folders / "la", "la")})
    write_manifest(tmp_path / "made", train_config({"la": (tmp_path / "other", "la")}))
    made = Checkpoint.open(tmp_path / "made")
    with pytest.raises(UserError) as caught:
        prepare(config, SPEC, encode, made, own)
    assert words in str(caught.value)
    assert ("set run.dir to a new folder" if own else "set data.stats_source to") in str(caught.value)
    config.data.stats_source = "la"
    assert prepare(config, SPEC, encode, made).only_robot.embodiment == ARM


def test_a_run_that_goes_on_keeps_its_statistics(folders, tmp_path):
    """Even if the folder it took them from was written anew."""
    write_shards(tmp_path / "la", clips=20, shards=5)
    config = train_config({"la": (tmp_path / "la", "la")})
    first = prepare(config, SPEC, encode).only_robot.chain
    write_manifest(tmp_path / "made", config)
    shutil.rmtree(tmp_path / "la")
    write_shards(tmp_path / "la", clips=40, shards=5)
    assert prepare(config, SPEC, encode, Checkpoint.open(tmp_path / "made"), own=True).only_robot.chain == first
    assert prepare(config, SPEC, encode).only_robot.chain != first


def test_no_pixel_reaches_a_batch_of_kind_la(tmp_path):
    """The same clips with other pictures, read as `la`, are the same batches bit for bit; as `vla` they are not."""
    clips = [make_clip(number, 9, ARM, FRONT, 1) for number in range(12)]
    black = simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    other = [replace(clip, frames={"front": dict.fromkeys(clip.frames["front"], black)}) for clip in clips]
    found = {}
    for name, made in (("one", clips), ("two", other)):
        write_shards(tmp_path / name / "x", made, 4, FRONT)
        for kind in ("la", "vla"):
            config = train_config({"x": (tmp_path / name / "x", kind)}, steps=3)
            found[name, kind] = [batch for data in steps(config) for batch in data.batches]
    assert all(itertools.starmap(same_batch, zip(found["one", "la"], found["two", "la"], strict=True)))
    assert not all(itertools.starmap(same_batch, zip(found["one", "vla"], found["two", "vla"], strict=True)))


@pytest.mark.parametrize("recipe", ["release", "gpla"])
def test_augmentation_belongs_to_the_sample_not_to_the_rank(folders, recipe):
    config = train_config({"vla": (folders / "vla", "vla")}, steps=3)
    plain = [rows(step) for step in steps(config)]
    config.data.augment, config.data.augmentation = 0.5, recipe
    alone = [rows(step) for step in steps(config)]
    parts = [steps(config, rank, 2) for rank in range(2)]
    assert [merged(list(pair)) for pair in zip(*parts, strict=True)] == alone
    changed = [alone[step][key] != plain[step][key] for step in range(3) for key in alone[step]]
    assert 0.2 < np.mean(changed) < 0.8


def test_the_arithmetic_is_printed(folders):
    config = two_stages(folders)
    text = explain(config, prepare(config, SPEC, encode), 2)
    assert "stage first: a step is 16 = 8 la + 8 vla samples = 2 ranks x (1 la + 1 vla) micro-batches of 4" in text
    assert "5 steps = 80 samples" in text
    assert "warning: stage first ends inside its warm-up of 1,000 steps; its learning rate gets to 4e-08" in text
    config.stages["first"].warmup_steps = 4
    assert "stage first ends inside" not in explain(config, prepare(config, SPEC, encode), 2)
    total = sum(shard.size for name in ("la", "vla") for shard in read_index(folders / name).shards)
    assert f"shards in memory: at most {total / 2e9:.3g} GB a rank" in text, "these are smaller than two blocks"
    assert "data.shuffle_bytes" not in text
    config.data.shuffle_bytes = 1000
    text = explain(config, prepare(config, SPEC, encode), 2)
    assert re.search(r"warning: vla: shards of up to 0 MB are read whole, .*; write the folder with \d+ shards", text)
    assert f"la: 40 samples = {40 / read_index(folders / 'la').samples:.2f} passes" in text


def test_it_is_said_when_some_clips_are_seen_more_often_or_values_are_clipped(folders, tmp_path):
    write_shards(tmp_path / "uneven", [make_clip(number, 9) for number in range(24)], 6)
    far = [make_clip(number, 9) for number in range(24)]
    write_shards(tmp_path / "far", [replace(clip, state=clip.state * 3) for clip in far], 4)
    config = train_config({"la": (tmp_path / "uneven", "la"), "far": (tmp_path / "far", "la")}, streams=4)
    text = explain(config, prepare(config, SPEC, encode), 2)
    assert "warning: la: some clips are seen 2.0 times as often as others" in text
    assert "warning: far: some clips" not in text
    assert re.search(r"warning: far: state dims .* go beyond the statistics in use", text)
    assert "la: state dims" not in text
