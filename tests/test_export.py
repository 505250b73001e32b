"""Why: what is exported leaves the house: merged in half precision, with a weight of the base's or without its chat
template it still loads, and is another model. Every family's real class, small and random."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from la4vla import manifest
from la4vla.config import LoraConfig
from la4vla.export import export
from la4vla.files import sha256
from la4vla.model import lora
from la4vla.model.base import Base
from la4vla.model.policy import rebuild
from la4vla.serve.policy import ServedPolicy
from la4vla.types import UserError
from la4vla.vlm.load import load_vlm, save_vlm
from la4vla.vlm.stored import load_checkpoint, rebuild_adapted
from tests.fixtures import ARM
from tests.hand_checkpoint import write_checkpoint
from tests.model.conftest import batch_of
from tests.vlm.conftest import FAMILIES, row, small

LORA = LoraConfig(rank=4, targets=["llm", "vision"])


def moved(module):
    """Adapters that do something."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.1, generator=draw)
    return module.eval()


def write_manifest(folder: Path, source: manifest.Manifest, **changes) -> None:
    manifest.Manifest(**{**vars(source), "weights_sha256": sha256(folder / manifest.WEIGHTS), **changes}).write(folder)
    (folder / manifest.COMPLETE).touch()


@pytest.fixture(scope="module")
def hand(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hand") / "checkpoint", ARM, ("front",))


def adapter_checkpoint(folder: Path, hand: Path, family: str):
    """A model of the family with adapters on a saved base: (checkpoint folder, the model itself, its encoder)."""
    vlm, encoder = small(family)
    save_vlm(vlm, encoder, folder / "base")
    described = {**vlm.description, "lora": lora.description(LORA)}
    adapted = moved(rebuild_adapted(described, folder / "base", 0))
    checkpoint = folder / "checkpoint"
    encoder.save(checkpoint / manifest.TOKENIZER)
    held = {name: value for name, value in adapted.state_dict().items() if lora.is_adapter(name)}
    save_file(held, checkpoint / manifest.WEIGHTS)
    changes = {
        "learner": "vlm",
        "model": described,
        "base": Base.identify(str(folder / "base")).to_dict(),
        "text": {"codec": {}, "max_tokens": encoder.max_tokens},
    }
    write_manifest(checkpoint, manifest.read(hand), **changes)
    return checkpoint, adapted, encoder


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_gives_the_same_logits_to_transformers(family, hand, tmp_path):
    checkpoint, adapted, encoder = adapter_checkpoint(tmp_path, hand, family)
    said = export(checkpoint, tmp_path / "out")
    assert "for transformers (from_pretrained), adapters merged" in said
    network = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "out"), local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(str(tmp_path / "out"), local_files_only=True)
    batch = encoder.batch([encoder.prepare(item) for item in (row(images=2), row("texts/1", "yes", 0))])
    given = {"input_ids": batch.input_ids_BL, "attention_mask": batch.text_mask_BL.long(), **batch.images}
    theirs, ours = network(**given).logits, adapted.network(**given).logits
    assert (theirs - ours).abs().max() < 1e-5 * ours.abs().max()
    assert (ours - small(family)[0].network(**given).logits).abs().max() > 1e-2
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What next?"}]}]
    assert processor.apply_chat_template(chat) == encoder.processor.apply_chat_template(chat)
    again, _ = load_vlm(str(tmp_path / "out"))
    assert not lora.adapted(again)


def test_a_checkpoint_of_adapters_is_opened_with_its_base(hand, tmp_path):
    checkpoint, adapted, encoder = adapter_checkpoint(tmp_path, hand, "internvl")
    vlm, theirs = load_checkpoint(checkpoint, manifest.read(checkpoint))
    batch = encoder.batch([encoder.prepare(row())])
    assert torch.equal(vlm.log_probs(batch), adapted.log_probs(batch)) and theirs.files() == encoder.files()
    with pytest.raises(UserError, match="a policy with actions, not a model that writes"):
        load_checkpoint(hand, manifest.read(hand))
    with pytest.raises(UserError, match=r"a model that writes .*, not a policy"):
        ServedPolicy.load(checkpoint)


def adapted_policy(folder: Path, hand: Path, writes: bool) -> Path:
    base = manifest.read(hand)
    described = {**base.model, "lora": lora.description(LORA), "writes": writes}
    policy = moved(rebuild(described, hand, 0))
    held = {name: value for name, value in policy.state_dict().items() if name not in policy.from_base}
    folder.mkdir()
    save_file(held, folder / manifest.WEIGHTS)
    (folder / manifest.TOKENIZER).mkdir()
    for file in (hand / manifest.TOKENIZER).iterdir():
        (folder / manifest.TOKENIZER / file.name).write_bytes(file.read_bytes())
    identity = {"place": str(hand), "files": {manifest.WEIGHTS: base.weights_sha256}}
    write_manifest(folder, base, model=described, base=identity)
    return folder


@torch.no_grad()
def test_an_exported_policy_acts_as_before_and_stands_alone(hand, tmp_path):
    checkpoint = adapted_policy(tmp_path / "adapted", hand, writes=False)
    said = export(checkpoint, tmp_path / "out")
    assert said.endswith("it has no language head, so there is nothing in it for transformers")
    before, after = (ServedPolicy.load(folder).policy for folder in (checkpoint, tmp_path / "out"))
    batch = batch_of(before.spec, "vla")
    assert (before.sample(batch, 4) - after.sample(batch, 4)).abs().max() < 1e-5
    assert after.state_dict().keys() == load_file(hand / manifest.WEIGHTS).keys()
    assert manifest.read(tmp_path / "out").base == {}


@torch.no_grad()
def test_a_policy_that_writes_is_exported_for_transformers_too(hand, tmp_path):
    checkpoint = adapted_policy(tmp_path / "adapted", hand, writes=True)
    assert export(checkpoint, tmp_path / "out").endswith("for transformers are in vlm/")
    policy = ServedPolicy.load(checkpoint).policy
    network = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "out" / "vlm"), local_files_only=True).eval()
    ids = torch.arange(20, 60)[None]
    states = policy.backbone.internvl.language_model(ids).last_hidden_state
    assert (network(input_ids=ids).logits - policy.language_head(states)).abs().max() < 1e-5


def test_what_cannot_be_exported_is_one_sentence(hand, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(hand, tmp_path / "there")
    checkpoint, *_ = adapter_checkpoint(tmp_path, hand, "internvl")
    with pytest.raises(UserError, match="say where they lie with --base"):
        export(checkpoint, tmp_path / "out", base=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()
