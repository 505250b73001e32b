"""Why: the throughput table is a claim against the release. The layouts it compares must be what they are called, and
what is timed must do the operations that the layout needs and no others. Operations are counted, since seconds vary."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import layouts, throughput
from la4vla.config import MODULE_GROUPS, ModelConfig
from la4vla.model import flops
from la4vla.model.policy import build_policy
from la4vla.model.presets import LA4VLA_1B, TINY
from la4vla.shell import exit_status


def test_the_released_layout_is_three_images_and_1024_positions():
    la, released, vla, released_vla = layouts.layouts(LA4VLA_1B, instruction_tokens=40, views=1)
    assert (la.images, la.positions, la.trained) == (0, 40, ("llm", "head"))
    assert (released.images, released.positions, released.trained) == (3, 1024, ("llm", "head"))
    assert (vla.images, vla.positions, vla.trained) == (1, 40 + 256 + 7, MODULE_GROUPS)
    assert (released_vla.images, released_vla.positions, released_vla.trained) == (3, 1024, MODULE_GROUPS)


@pytest.mark.parametrize("layout", layouts.layouts(TINY, instruction_tokens=40, views=2), ids=lambda x: x.name)
def test_batches_are_what_the_layout_says(layout):
    batch = layouts.make_batch(TINY, layout, rows=2)
    images = 0 if batch.images_NCHW is None else len(batch.images_NCHW)
    assert batch.input_ids_BL.shape == (2, layout.positions) and images == 2 * layout.images
    assert int(batch.text_mask_BL.sum()) == 2 * layout.tokens
    assert int((batch.input_ids_BL == TINY.image_token_id).sum()) == images * TINY.image_tokens
    policy = build_policy(ModelConfig(dropout=0.0), seed=0)
    calls = []
    policy.backbone.internvl.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    total, count = policy(batch)
    assert torch.isfinite(total) and count > 0 and len(calls) == int(layout.images > 0)


@pytest.fixture
def counted(monkeypatch):
    """Whatever a Bench times is run once; the operations that it did are listed here in order."""
    operations = []

    def count(self, call):
        with FlopCounterMode(display=False) as counter:
            call()
        operations.append(counter.get_total_flops())
        return 1.0, 1

    monkeypatch.setattr(throughput.Bench, "time", count)
    return operations


def bench():
    """With eager attention and dropout, whose operations torch counts in full."""
    policy = build_policy(ModelConfig(attention="eager"), seed=0)
    return throughput.Bench(policy, "cpu", "fp32", seconds=0.0, clock="wall")


@pytest.mark.parametrize("layout", layouts.layouts(TINY, instruction_tokens=20, views=1), ids=lambda x: x.name)
def test_what_is_timed_does_the_operations_of_its_layout_and_no_others(counted, layout):
    """An `la` row that is padded, or sent through the vision tower, would be slower and still be called `la`."""
    rows, measured = 2, bench()
    timing = measured.train(layout, rows, checkpointing=False, peak=0.0)
    step, forward = counted
    cost = flops.forward(TINY, measured.readout, layout.images, layout.positions)
    assert forward == pytest.approx(rows * cost.total, rel=0.002)
    assert step == pytest.approx(rows * flops.training(cost, layout.trained), rel=0.02)
    assert step == pytest.approx(rows * timing.train_operations, rel=0.02)


@pytest.mark.parametrize("views", [0, 1], ids=["la", "vla"])
def test_a_timed_chunk_does_the_operations_of_its_parts(counted, views):
    layout, steps, measured = layouts.layouts(TINY, 20, 1)[2 * views], 4, bench()
    measured.sampler(layout, steps)
    cost = flops.forward(TINY, measured.readout, layout.images, layout.positions)
    sizes = (TINY, measured.readout, layout.images, layout.positions, steps)
    context = cost.total - cost.head
    assert counted[0] == pytest.approx(context, rel=0.002)
    flows = [flops.chunk(*sizes, cached=cached) - context for cached in (True, False)]
    assert counted[1:] == pytest.approx(flows, rel=0.06)  # torch does not count the head's attention here
    saved = (steps - 1) * flops.head_memory(TINY, layout.positions)
    assert counted[2] - counted[1] == pytest.approx(saved, rel=0.002)


@pytest.mark.slow  # the loader starts its process twice
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    arguments = ["--preset", "tiny", "--batch", "1", "--seconds", "0.01", "--flow-steps", "2", "--json"]
    assert throughput.main([*arguments, str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert [row["layout"] for row in result["training"]] == ["la", "released la", "vla", "released vla"]
    assert all(row["train_samples_per_s"] > 0 and row["mfu"] > 0 for row in result["training"])
    assert result["ratios"]["la operations"] > 4 and result["ratios"]["la training"] > 0
    assert result["sampler_ms"]["vla"]["flow_cached"] > 0
    assert result["loader"]["la"] > 0 and result["loader"]["vla"] > 0
    printed = capsys.readouterr().out
    assert "released la" in printed and "loader, vla" in printed


def test_a_layout_that_does_not_fit_costs_no_other(capsys, monkeypatch):
    train = throughput.Bench.train

    def full(bench, layout, *arguments):
        if layout.name == "la":
            raise torch.OutOfMemoryError
        return train(bench, layout, *arguments)

    monkeypatch.setattr(throughput.Bench, "train", full)
    small = ["--batch", "1", "--seconds", "0.01", "--no-sampler", "--no-loader", "--layouts", "la", "vla"]
    assert throughput.main(small) == 0
    said = capsys.readouterr()
    assert "la: out of memory at batch 1; left out" in said.err
    assert [line.split()[0] for line in said.out.splitlines() if " 1 " in line and line.startswith("vla")] == ["vla"]


def test_bad_input_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_status(throughput.main, ["--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert exit_status(throughput.main, ["--clock", "cpu"]) == 2
    assert "OMP_NUM_THREADS=1" in capsys.readouterr().err
    assert exit_status(throughput.main, ["--instruction-tokens", "500"]) == 2
    assert "the preset takes 192" in capsys.readouterr().err
