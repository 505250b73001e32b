"""Why: a checkpoint that half fits must not load. Small random ones, saved by transformers itself, stand in."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from la4vla.config import ModelConfig
from la4vla.model.backbone import internvl_config
from la4vla.model.policy import build_policy
from la4vla.model.presets import TINY
from la4vla.model.tokenizer import TINY_TOKENIZER, build_prompter
from la4vla.types import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Six language layers where the preset keeps four, bf16, with a language-model head, in one file."""
    config = internvl_config(TINY, "sdpa")
    config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = ["full_attention"] * 6
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
    folder = tmp_path_factory.mktemp("internvl")
    model.save_pretrained(folder)
    shutil.copy(TINY_TOKENIZER / "tokenizer.json", folder)
    return model, folder


def matches(policy, model):
    ours, theirs = policy.backbone.internvl.state_dict(), model.model.state_dict()
    assert set(ours) < set(theirs) and set(theirs) - set(ours) == {
        name for name in theirs if name.startswith(("language_model.layers.4.", "language_model.layers.5."))
    }
    return all(torch.equal(ours[name], theirs[name].float()) for name in ours)


def test_roundtrip_keeps_the_first_layers_in_fp32(original):
    model, folder = original
    policy = build_policy(ModelConfig(weights=str(folder)), seed=0)
    assert matches(policy, model)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in policy.parameters())
    fresh = build_policy(ModelConfig(), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(policy.head.parameters(), fresh.head.parameters(), strict=True))
    assert build_prompter(ModelConfig(weights=str(folder))).encode("lift")


def test_sharded_checkpoints(original, tmp_path):
    model, _ = original
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert matches(build_policy(ModelConfig(weights=str(tmp_path)), seed=0), model)


def edited(folder, tmp_path, edit):
    """A copy of the checkpoint whose tensors went through `edit`."""
    shutil.copy(folder / "config.json", tmp_path)
    save_file(edit(load_file(folder / "model.safetensors")), tmp_path / "model.safetensors")
    return ModelConfig(weights=str(tmp_path))


def stripped(name):
    return name.removeprefix("model.")


def test_layouts_before_and_after_transformers_4_53(original, tmp_path):
    """The hub still holds `language_model.model.layers...`; today's name is `model.language_model.layers...`."""
    model, folder = original

    def older(tensors):
        names = {name: stripped(name) for name in tensors}
        names = {
            name: f"language_model.model.{short.removeprefix('language_model.')}"
            if short.startswith("language_model.") and "lm_head" not in short and ".model." not in short
            else short
            for name, short in names.items()
        }
        names = {
            name: "language_model.lm_head.weight" if name == "lm_head.weight" else new for name, new in names.items()
        }
        return {names[name]: tensor for name, tensor in tensors.items()}

    def newer(tensors):
        names = {name: stripped(name).replace("language_model.model.", "language_model.") for name in tensors}
        return {new if "lm_head" in new else f"model.{new}": tensors[name] for name, new in names.items()}

    for index, layout in enumerate((older, newer)):
        target = tmp_path / str(index)
        target.mkdir()
        assert matches(build_policy(edited(folder, target, layout), seed=0), model)


def drop(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("projector.linear_2.bias"), "missing 1 .multi_modal_projector.linear_2.bias"),
        (drop("layers.3."), "missing 12"),
        (lambda tensors: {**tensors, "vision_tower.extra": torch.zeros(1)}, "unexpected 1 .vision_tower.extra"),
        (
            lambda tensors: {
                name: tensor[:1] if name.endswith("norm.weight") and tensor.ndim == 1 else tensor
                for name, tensor in tensors.items()
            },
            "unexpected",
        ),
    ],
)
def test_anything_missing_or_left_over_is_an_error(original, tmp_path, edit, message):
    with pytest.raises(UserError, match=message):
        build_policy(edited(original[1], tmp_path, edit), seed=0)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "hidden_size", 896),
        ("text_config", "num_key_value_heads", 5),
        ("text_config", "vocab_size", 7),
        ("text_config", "num_hidden_layers", 3),
        ("text_config", "rope_parameters", {"rope_theta": 1e6}),
        ("vision_config", "num_attention_heads", 8),
        ("vision_config", "image_size", [448, 448]),
        ("vision_config", "use_qk_norm", True),
    ],
)
def test_other_sizes_are_an_error(original, tmp_path, section, key, value):
    """Head counts and rope do not show in shapes: only config.json can tell."""
    raw = json.loads((original[1] / "config.json").read_text())
    raw[section][key] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    shutil.copy(original[1] / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"the preset|set model\.llm_layers to as many") as caught:
        build_policy(ModelConfig(weights=str(tmp_path)), seed=0)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"model_type": "internvl"', '{"model_type": "internvl"}', "[]"])
def test_a_damaged_config_is_one_sentence(original, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    shutil.copy(original[1] / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"config\.json: damaged .*; fetch the checkpoint again"):
        build_policy(ModelConfig(weights=str(tmp_path)), seed=0)


def test_a_damaged_index_is_one_sentence(original, tmp_path):
    shutil.copytree(original[1], tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map"')
    with pytest.raises(UserError, match=r"index\.json: damaged .*; fetch the checkpoint again"):
        build_policy(ModelConfig(weights=str(tmp_path)), seed=0)


def test_broken_folders_are_errors(original, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        build_policy(ModelConfig(weights=str(tmp_path)), seed=0)
    shutil.copy(original[1] / "config.json", tmp_path)
    with pytest.raises(UserError, match="safetensors is missing"):
        build_policy(ModelConfig(weights=str(tmp_path)), seed=0)
    (tmp_path / "model.safetensors").write_bytes((original[1] / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build_policy(ModelConfig(weights=str(tmp_path)), seed=0)
