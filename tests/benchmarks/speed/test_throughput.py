"""Why: the throughput table is a claim against the release; the layouts it compares must be what they are called."""

import json

import pytest
import torch

from benchmarks.speed import layouts, throughput
from la4vla.config import MODULE_GROUPS, ModelConfig
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
