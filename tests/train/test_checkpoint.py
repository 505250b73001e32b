"""Why: a half-written checkpoint that is read, an old one that is gone before the new one is there, and weights loaded
"as far as they fit" are found out days later (FACTS 5.2 B11). One process, no data."""

import errno
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from la4vla import manifest
from la4vla.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from la4vla.manifest import Checkpoint, TrainedRobot
from la4vla.train import checkpoint, disk, metrics, resume, run_folder
from la4vla.train.checkpoint import Identity, Position
from la4vla.train.dist import World
from la4vla.train.engines.plain import PlainEngine
from la4vla.train.optim import OTHERS, Rules
from la4vla.types import UserError

NAMES = (
    *("a.weight", "a.bias", "b.weight", "b.bias", "frozen.weight", "frozen.bias"),
    *("frozen.running_mean", "frozen.running_var", "frozen.num_batches_tracked"),
)
IDENTITY = Identity(
    learner="policy",
    model={"size": 1},
    base={},
    held=NAMES,
    input_spec={},
    robots=(TrainedRobot({"name": "arm"}, [], ["front"], {"front": [[2, 3]]}),),
    text={},
    sources={"a": "1f", "b": "2e"},
    tokenizer={"tokenizer.json": b"{}"},
)


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    """checkpoint.save agrees over ranks: a group of one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def world() -> World:
    return World(0, 0, 1, torch.device("cpu"), torch.distributed.HashStore())


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        run=RunConfig(dir=str(tmp_path / "run"), seed=1),
        data=DataConfig(sources={"a": SourceConfig(path="a", kind="vla")}),
        stages={"one": StageConfig(steps=10), "two": StageConfig(steps=10)},
        checkpoint=CheckpointConfig(every_steps=1, keep_last=2),
    )


def tied() -> nn.Module:
    """Two names for one tensor, something frozen, a buffer: what savers lose."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "frozen": nn.BatchNorm1d(4)})
    module["b"].weight = module["a"].weight
    for parameter in module["frozen"].parameters():
        parameter.requires_grad_(False)
    return module


def trained(config: TrainConfig, world: World, steps: int = 2) -> PlainEngine:
    built = PlainEngine(tied(), config, Rules(0.1, {}), world)
    for _ in range(steps):
        module = built.module
        built.backward((module["a"].weight.square().sum() + module["b"].bias.sum()), last=True)
        built.step({OTHERS: 0.1})
    return built


def save(config: TrainConfig, world: World, step: int, stage: str = "one") -> Path:
    checkpoint.save(config, trained(config, world), IDENTITY, Position(stage, step, step), 0, world)
    return Path(config.run.dir) / "checkpoints" / f"step_{step:08d}"


def names(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.run.dir) / "checkpoints").iterdir())


def test_everything_comes_back(config, world):
    engine = trained(config, world)
    checkpoint.save(config, engine, IDENTITY, Position("one", 3, 3), 0, world)
    folder = Path(config.run.dir) / "checkpoints" / "step_00000003"
    assert {path.name for path in folder.iterdir()} == {
        manifest.MANIFEST,
        manifest.WEIGHTS,
        manifest.TRAINING,
        manifest.TOKENIZER,
        manifest.COMPLETE,
    }
    fresh = tied()
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    checkpoint.load_weights(fresh, folder, own=True)
    again = PlainEngine(fresh, config, Rules(0.1, {}), world)
    checkpoint.load_training(again, folder)
    for mine, theirs in zip(again.weights(NAMES), engine.weights(NAMES), strict=True):
        assert mine[0] == theirs[0] and torch.equal(mine[1], theirs[1])
    for mine, theirs in zip(again.moments(), engine.moments(), strict=True):
        assert mine[0] == theirs[0] and all(torch.equal(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))
    assert again.updates() == engine.updates() == 2
    assert fresh["a"].weight is fresh["b"].weight
    found = manifest.read(folder)
    assert (found.stage, found.stage_step, found.step, found.robot().views) == ("one", 3, 3, ["front"])
    assert (folder / manifest.TOKENIZER / "tokenizer.json").read_bytes() == b"{}"


def test_newest_complete_one_is_found_and_wrecks_are_not(config, world, capsys):
    save(config, world, 1)
    second = save(config, world, 2)
    (save(config, world, 3) / manifest.COMPLETE).unlink()
    shutil.copytree(second, second.with_name("step_00000009.tmp"))
    assert manifest.newest(config.run.dir) == second
    found = resume.find_resume(config)
    assert (found.checkpoint.folder, found.position, found.inside_stage) == (second, Position("one", 2, 2), True)
    with pytest.raises(UserError, match="not a complete checkpoint"):
        manifest.read(second.with_name("step_00000003"))
    checkpoint.start_clean(Path(config.run.dir), world)
    assert names(config) == ["step_00000002"]
    assert "step_00000003: not complete" in capsys.readouterr().out


def test_a_folder_without_complete_is_no_checkpoint_when_saving(config, world, capsys):
    """It is neither taken for the step's checkpoint nor counted among the ones that are kept."""
    for step in (1, 2):
        (save(config, world, step) / manifest.COMPLETE).unlink()
    save(config, world, 3)
    assert names(config) == ["step_00000001", "step_00000002", "step_00000003"]
    second = save(config, world, 2)
    assert "step_00000002: not complete" in capsys.readouterr().out
    manifest.read(second)
    save(config, world, 4)
    assert names(config) == ["step_00000001", "step_00000003", "step_00000004"]


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [(1, 0, [6]), (2, 0, [5, 6]), (1, 3, [3, 6]), (2, 2, [2, 4, 5, 6]), (9, 0, [1, 2, 3, 4, 5, 6])],
)
def test_pruning_keeps_the_last_and_every_so_many(config, world, last, every, kept):
    config.checkpoint = CheckpointConfig(every_steps=1, keep_last=last, keep_every=every)
    for step in range(1, 7):
        save(config, world, step)
    assert names(config) == [f"step_{step:08d}" for step in kept]


def test_a_lower_keep_last_makes_room_before_the_next_one_is_written(config, world, monkeypatch):
    """The cure that a full disk names: pruned after the write alone, the next save would fail as the last one did."""
    config.checkpoint = CheckpointConfig(every_steps=1, keep_last=2)
    for step in (1, 2):
        save(config, world, step)
    config.checkpoint = CheckpointConfig(every_steps=1, keep_last=1)

    def room(folder, needed):
        if len(list(folder.glob("step_*"))) > 2:  # the new one's .tmp is one of them
            raise UserError("no room")

    monkeypatch.setattr(disk, "check_room", room)
    save(config, world, 3)
    assert names(config) == ["step_00000003"]


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(config, world):
    another = pytest.raises(UserError, match=r"another run is at work there; .* another run.dir")
    with run_folder.only_run(config, world), another, run_folder.only_run(config, world):
        pass
    with run_folder.only_run(config, world):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_is_one_sentence_and_harms_nothing(config, world, monkeypatch, error):
    first = save(config, world, 1)

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"disk became full while a checkpoint of .* GB .* start again"):
            save(config, world, 2)
    assert names(config) == ["step_00000001"]
    assert manifest.newest(config.run.dir) == first
    assert save(config, world, 2).is_dir()


def no_room(path: Path, *_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("function", ["mkdir", "write_bytes", "write_text", "touch"])
def test_whatever_part_of_a_checkpoint_finds_no_room_it_is_one_sentence(config, world, monkeypatch, function):
    """The folder, the tokenizer's files, the manifest, the mark."""
    first = save(config, world, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, function, no_room)
        with pytest.raises(UserError, match=r"disk became full while a checkpoint"):
            save(config, world, 2)
    assert names(config) == [first.name]


def test_a_config_that_finds_no_room_is_one_sentence(config, monkeypatch):
    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(UserError, match=r"disk became full while config.yaml"):
        run_folder.write_config(config)


def test_too_little_disk_is_said_before_anything_is_written(config, world, monkeypatch):
    save(config, world, 1)
    usage = shutil.disk_usage(config.run.dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(UserError, match=r"needs .* GB and 0.000 GB are free"):
        save(config, world, 2)
    assert names(config) == ["step_00000001"]


def test_a_really_full_disk(config, world, tmp_path, monkeypatch):
    """On a file system of its own that is too small, with the early check switched off."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        config.run.dir = str(small)
        first = save(config, world, 1)
        monkeypatch.setattr(disk, "SPARE", 0.0)
        (small / "other").write_bytes(bytes(shutil.disk_usage(small).free - 8192))
        with pytest.raises(UserError, match="the disk became full"):
            save(config, world, 2)
        sink = metrics.JsonLines(small / manifest.METRICS, 1)
        (small / "rest").write_bytes(bytes(shutil.disk_usage(small).free))
        with pytest.raises(UserError, match=r"metrics.jsonl: the disk became full while a metric was written"):
            for step in range(2, 1000):
                sink.write({"step": step, "loss": 1.0})
        sink.close()
        assert manifest.newest(small) == first
        assert names(config) == ["step_00000001"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_damaged_optimizer_state_is_named(config, world):
    path = save(config, world, 1) / manifest.TRAINING
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"its training.safetensors is damaged .* remove it"):
        checkpoint.load_training(PlainEngine(tied(), config, Rules(0.1, {}), world), path.parent)


def test_damaged_weights_are_named(config, world):
    folder = save(config, world, 1)
    data = (folder / manifest.WEIGHTS).read_bytes()
    (folder / manifest.WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"its model.safetensors is damaged .* copy it again"):
        checkpoint.load_weights(tied(), folder, own=False)


def test_weights_that_do_not_fit_are_refused_by_name(config, world):
    folder = save(config, world, 1)
    other = nn.ModuleDict({"a": nn.Linear(4, 5), "c": nn.Linear(4, 4)})
    with pytest.raises(UserError, match=r"missing 4 \(a.bias, a.weight, c.bias, ...\), unexpected .*a.bias"):
        checkpoint.load_weights(other, folder, own=True)


def test_optimizer_state_for_other_parameters_is_refused(config, world):
    folder = save(config, world, 1)
    module = tied()
    module["a"].bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"unexpected 1 \(a.bias\)"):
        checkpoint.load_training(PlainEngine(module, config, Rules(0.1, {}), world), folder)


CHANGES = {
    "run.seed": lambda config: setattr(config.run, "seed", 2),
    "stages.one.lr": lambda config: setattr(config.stages["one"], "lr", 0.5),
    "stages.two.steps": lambda config: setattr(config.stages["two"], "steps", 11),
    "model.dropout": lambda config: setattr(config.model, "dropout", 0.5),
    "data.streams": lambda config: setattr(config.data, "streams", 8),
    "engine.precision": lambda config: setattr(config.engine, "precision", "bf16"),
    "data.sources.a.views": lambda config: setattr(config.data.sources["a"], "views", ["front"]),
    "optim.clip_norm": lambda config: setattr(config.optim, "clip_norm", 2.0),
    "stages.three.": lambda config: config.stages.update(three=StageConfig(steps=1)),
}


@pytest.mark.parametrize("key", CHANGES)
def test_another_config_does_not_resume(config, world, key):
    save(config, world, 1)
    CHANGES[key](config)
    with pytest.raises(UserError, match=rf"^{key}.* set it back, or start a new run.dir"):
        resume.find_resume(config)


def test_stages_in_another_order_do_not_resume(config, world):
    save(config, world, 1)
    config.stages = dict(reversed(config.stages.items()))
    with pytest.raises(UserError, match="another order"):
        resume.find_resume(config)


@pytest.mark.parametrize("what", ["data.sources", "stages.two.mixture"])
def test_sources_in_another_order_do_not_resume(config, world, what):
    """Equal as mappings: but the next sample, and the slot of each view, go by the order."""
    config.data.sources["b"] = SourceConfig(path="b", kind="vla")
    config.stages["two"].mixture = {"a": 0.5, "b": 0.5}
    save(config, world, 1)
    if what == "data.sources":
        config.data.sources = dict(reversed(config.data.sources.items()))
    else:
        config.stages["two"].mixture = dict(reversed(config.stages["two"].mixture.items()))
    with pytest.raises(UserError, match=rf"^{what} are in another order"):
        resume.find_resume(config)


def test_what_changes_no_result_may_change(config, world):
    save(config, world, 1)
    config.engine = EngineConfig(name="deepspeed", zero_stage=3)
    config.log.every_steps, config.checkpoint.every_steps, config.data.decode_threads = 1, 7, 9
    config.stages["one"].micro_batch = 1
    config.data.sources["a"].path = config.model.weights = config.model.tokenizer = "moved"
    assert resume.find_resume(config).position.step == 1


@pytest.mark.parametrize("now", [{"a": "1f", "b": "0"}, {"a": "1f"}])
def test_other_data_does_not_resume(config, world, now):
    folder = save(config, world, 1)
    checkpoint.check_data(Checkpoint.open(folder), {"b": "2e", "a": "1f"})
    with pytest.raises(UserError, match=r"^data.sources.b holds other data than .* put it back or start a new run.dir"):
        checkpoint.check_data(Checkpoint.open(folder), now)


def test_a_rank_that_sees_other_files_than_rank_0_is_an_error(config, world, monkeypatch):
    """As with a run.dir on each machine's own disk: another machine has no checkpoint, or an old one."""
    own = save(config, world, 1)
    for theirs in (("", True), ("0" * 64, True)):
        monkeypatch.setattr(resume, "gathered", lambda mine, theirs=theirs: [mine, mine, theirs])
        with pytest.raises(UserError, match=rf"^rank 2 does not see the same {own} .* that all ranks share"):
            resume.begin_run(config, world)
    config.run.dir += "-other"
    monkeypatch.setattr(resume, "gathered", lambda mine: [mine, ("", False)])
    with pytest.raises(UserError, match=r"^rank 1 does not see the same .*-other as rank 0"):
        resume.begin_run(config, world)


def test_a_stage_never_begins_with_fresh_weights_because_a_checkpoint_is_gone(config, world):
    save(config, world, 8)
    with pytest.raises(UserError, match=r"checkpoint of step 10, which ended a stage just now, is gone"):
        resume.begin_stage(config, Position("two", 0, 10), world)
    last = save(config, world, 10)
    assert resume.begin_stage(config, Position("two", 0, 10), world).checkpoint.folder == last
    shutil.rmtree(last.parent)
    with pytest.raises(UserError, match="is gone"):
        resume.begin_stage(config, Position("two", 0, 10), world)


def test_resume_never_refuses_an_old_run_and_init_from_is_no_resume(config, world, tmp_path):
    folder = save(config, world, 1)
    config.run.resume = "never"
    with pytest.raises(UserError, match="resume is never"):
        resume.find_resume(config)
    config.run = replace(config.run, dir=str(tmp_path / "other"), init_from=str(folder))
    found = resume.find_resume(config)
    assert (found.checkpoint.folder, found.own, found.position) == (folder, False, Position("one", 0, 0))


def test_the_end_of_a_stage_is_the_beginning_of_the_next(config, world):
    save(config, world, 10)
    found = resume.find_resume(config)
    assert (found.position, found.inside_stage) == (Position("two", 0, 10), False)
    assert not resume.is_finished(config, found.position)
    checkpoint.save(config, trained(config, world), IDENTITY, Position("two", 10, 20), 0, world)
    assert resume.is_finished(config, resume.find_resume(config).position)
