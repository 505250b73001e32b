"""Why: the loss is our own arithmetic beside the library's model; a shift by one token, an image that is not seen or a
weight that is not loaded would train all the same, to a worse model. On the real classes of every family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaConfig

from la4vla.config import MODULE_GROUPS, ModelConfig
from la4vla.model.policy import build_policy
from la4vla.model.tokenizer import TINY_TOKENIZER, build_prompter
from la4vla.types import NOT_COUNTED, UserError
from la4vla.vlm import train_tokenizer
from la4vla.vlm.load import build_vlm, load_encoder, load_vlm, save_vlm
from la4vla.vlm.model import VlmModel, empty_network, rebuild
from tests.vlm.conftest import FAMILIES, MAKERS, row, small


def batch_of(encoder, rows, side="right"):
    return encoder.batch([encoder.prepare(item) for item in rows], side)


@torch.no_grad()
def test_the_loss_is_the_librarys_over_the_answers(pair, rows):
    vlm, encoder = pair
    batch = batch_of(encoder, rows)
    total, counted = vlm(batch)
    logits = vlm.network(input_ids=batch.input_ids_BL, attention_mask=batch.text_mask_BL.long(), **batch.images).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels_BL[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(total, expected)
    assert (total.dtype, total.dim(), counted.dtype, counted.dim()) == (torch.float32, 0, torch.float32, 0)
    assert int(counted) == batch.counted == int((batch.labels_BL != NOT_COUNTED).sum())


@torch.no_grad()
def test_padding_on_either_side_and_company_change_nothing(pair, rows):
    vlm, encoder = pair
    together = [vlm.log_probs(batch_of(encoder, rows, side)) for side in ("right", "left")]
    alone = torch.cat([vlm.log_probs(batch_of(encoder, [item])) for item in rows])
    for log_probs in together:
        torch.testing.assert_close(log_probs, alone, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_images_are_seen(pair):
    vlm, encoder = pair
    one, other = row(images=2), row(images=2)
    other = type(other)(**{**vars(other), "images": other.images[::-1]})
    losses = [float(vlm(batch_of(encoder, [item]))[0]) for item in (one, other)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_hold_every_parameter_once(family):
    vlm = small(family)[0]
    groups = vlm.groups()
    assert tuple(groups) == MODULE_GROUPS
    held = [id(parameter) for modules in groups.values() for module in modules for parameter in module.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in vlm.parameters())
    sizes = {
        name: sum(p.numel() for module in modules for p in module.parameters()) for name, modules in groups.items()
    }
    assert all(size > 0 for name, size in sizes.items() if name != "head")
    assert (sizes["head"] == 0) == vlm.tied == (family in ("gemma3", "qwen2_5_vl", "qwen3_vl"))


def test_frozen_groups_stay_in_eval_mode(pair):
    vlm = pair[0]
    vlm.frozen_groups = frozenset({"vision"})
    vlm.train()
    assert not any(module.training for part in vlm.groups()["vision"] for module in part.modules())
    assert vlm.groups()["llm"][0].training
    vlm.frozen_groups = frozenset()
    vlm.eval()


def test_vision_gets_a_zero_gradient_from_rows_without_images(pair):
    """Ranks whose rows have images wait for it."""
    vlm, encoder = pair
    blind, seen = (batch_of(encoder, [row(images=images)]) for images in (0, 1))
    vision = [p for name in ("vision", "projector") for module in vlm.groups()[name] for p in module.parameters()]
    for batch, moves in ((blind, False), (seen, True)):
        vlm.zero_grad()
        vlm(batch)[0].backward()
        if not moves:
            assert all(p.grad is not None and not p.grad.any() for p in vision)
        else:
            assert any(p.grad is not None and p.grad.any() for p in vision)
    vlm.zero_grad()
    with torch.no_grad():
        without = vlm(blind)[0]
    torch.testing.assert_close(vlm(blind)[0].detach(), without)


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(pair, rows):
    vlm, encoder = pair
    again = rebuild(vlm.description)
    again.load_state_dict(vlm.state_dict())
    again.enable_gradient_checkpointing()
    batch, kept = batch_of(encoder, rows), []
    for model in (vlm, again):
        model.train()
        model.zero_grad()
        sizes = []
        with saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor, lambda saved: saved
        ):
            total = model(batch)[0]
        kept.append(sum(sizes))
        total.backward()
    assert kept[1] < 0.7 * kept[0]
    for (name, one), other in zip(vlm.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)
    vlm.zero_grad()
    vlm.eval()


@torch.no_grad()
def test_a_description_rebuilds_the_model(pair, rows):
    vlm, encoder = pair
    again = rebuild(json.loads(json.dumps(vlm.description))).eval()
    assert all(parameter.isnan().all() for parameter in again.parameters())
    again.load_state_dict(vlm.state_dict())
    assert again.description == vlm.description
    assert again.max_tokens == encoder.max_tokens
    assert again.tied == vlm.tied
    batch = batch_of(encoder, rows)
    assert torch.equal(vlm.log_probs(batch), again.log_probs(batch))


@torch.no_grad()
def test_a_folder_is_what_from_pretrained_takes(pair, rows, tmp_path):
    vlm, encoder = pair
    save_vlm(vlm, encoder, tmp_path)
    batch = batch_of(encoder, rows)
    again, reader = load_vlm(str(tmp_path), encoder.max_tokens)
    assert torch.equal(again.eval().log_probs(batch_of(reader, rows)), vlm.log_probs(batch))
    assert again.description == vlm.description, "whatever folder it came from"
    assert torch.equal(load_encoder(str(tmp_path)).prepare(rows[0]).ids_L, encoder.prepare(rows[0]).ids_L)
    network = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(network) is type(vlm.network)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(encoder.processor)


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path):
    vlm, encoder = small("internvl")
    save_vlm(vlm, encoder, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj" in name)
    damage = {
        "missing keys": {key: value for key, value in weights.items() if key != name},
        "unexpected keys": {**weights, "extra": torch.zeros(1)},
    }
    for reason, state in damage.items():
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=reason):
            load_vlm(str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_vlm(str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_vlm(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_vlm(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_vlm(str(tmp_path))


def test_other_families_and_foreign_code_are_refused(tmp_path):
    with pytest.raises(UserError, match="model_type is `llava`; models that write are of internvl"):
        empty_network(LlavaConfig(), "sdpa")
    LlavaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type is `llava`"):
        load_vlm(str(tmp_path))
    foreign = {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(foreign))
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_vlm(str(tmp_path))
    with pytest.raises(UserError, match="no preset `tiny` of a model that writes; use one of tiny_vlm"):
        build_vlm("tiny", seed=0)


# ---- the preset


def test_a_seed_is_a_model_and_its_backbone_is_the_tiny_policys():
    one, same, other = (build_vlm("tiny_vlm", seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    policy = build_policy(ModelConfig(preset="tiny"), seed=3).backbone.internvl.state_dict()
    assert {f"network.model.{name}" for name in policy} == {name for name in one if "lm_head" not in name}
    assert all(torch.equal(one[f"network.model.{name}"], value) for name, value in policy.items())


def test_a_tiny_policy_takes_its_folder(tmp_path):
    vlm, encoder = small("tiny_vlm")
    save_vlm(vlm, encoder, tmp_path)
    config = ModelConfig(preset="tiny", weights=str(tmp_path))
    policy = build_policy(config, seed=1)
    for name, value in policy.backbone.internvl.state_dict().items():
        assert torch.equal(value, vlm.network.model.state_dict()[name])
    ids = build_prompter(config).encode("push the puck to a goal", (0,))
    assert ids == build_prompter(ModelConfig()).encode("push the puck to a goal", (0,))


def test_its_tokenizer_keeps_the_policys_ids_and_is_what_the_script_makes():
    ours = json.loads((train_tokenizer.ASSETS / "tokenizer.json").read_text())
    assert json.loads(train_tokenizer.build().to_str()) == ours
    tokenizer, tiny = Tokenizer.from_str(json.dumps(ours)), Tokenizer.from_file(str(TINY_TOKENIZER / "tokenizer.json"))
    assert all(tokenizer.token_to_id(token) == number for token, number in tiny.get_vocab().items())
    assert tokenizer.get_vocab_size() == 1024


def test_its_tokenizer_writes_numbers_digit_by_digit_and_our_words_whole():
    encoder = small("tiny_vlm")[1]
    decimals = "[[0.012, -0.034, 0.005, 1], [-0.050, 0.000, 0.021, 0]]"
    ids = encoder.tokenizer.encode(decimals)
    assert encoder.decode(ids) == decimals
    assert len(ids) == 41, "eleven characters a row are digits"
    digits = {str(digit): encoder.tokenizer.encode(str(digit)) for digit in range(10)}
    assert all(len(found) == 1 for found in digits.values())
    for text in ("1903", "-0.120", "12 cm, 7"):
        spelled = [token for token in encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer.encode(text))]
        assert [token for token in spelled if any(letter.isdigit() for letter in token)] == [
            c for c in text if c.isdigit()
        ]
    assert len(encoder.tokenizer.encode("what colour is the object?")) == 6
    assert encoder.tokenizer.encode("<unused3><unused63>") == [
        encoder.end_token_ids[0] - 62,
        encoder.end_token_ids[0] - 2,
    ]
    assert encoder.decode(encoder.tokenizer.encode("<unused3>")) == "<unused3>", "answers may hold rare tokens"


def test_it_learns_to_answer_by_the_image():
    """A few steps on two images and one question: the loss falls below what can be had blind."""
    vlm, encoder = build_vlm("tiny_vlm", seed=0)
    items = [row(f"t/{n}", answer, 1, "What is it?") for n, answer in enumerate(("left", "right"))]
    items[1] = type(items[1])(**{**vars(items[1]), "images": (255 - items[1].images[0],)})
    batch = batch_of(encoder, items)
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=1e-3)
    for _ in range(30):
        total, counted = vlm(batch)
        optimizer.zero_grad()
        (total / counted).backward()
        optimizer.step()
    blind = 2 * torch.log(torch.tensor(2.0)) / batch.counted
    with torch.no_grad():
        assert vlm(batch)[0] / batch.counted < 0.3 * blind


@pytest.mark.parametrize("family", MAKERS)
def test_bf16_weights_give_an_fp32_loss(family, rows):
    vlm, encoder = small(family)
    half = VlmModel(empty_network(vlm.network.config, "sdpa").to(torch.bfloat16), vlm.max_tokens).eval()
    half.load_state_dict(vlm.state_dict())
    batch = batch_of(encoder, rows)
    with torch.no_grad():
        total, exact = half(batch)[0], vlm(batch)[0]
    assert total.dtype == torch.float32
    assert abs(total - exact) < 0.05 * exact
