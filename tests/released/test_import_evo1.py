"""Why: an imported checkpoint that computes anything else than its own code did gives numbers that belong to nobody. So
a checkpoint of the released layout with random weights is compared with the release written out once more
(reference.py), from pixels, prompt and state to the chunk, in fp32 and for every switch of model.compat."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from la4vla import manifest
from la4vla.cli import main
from la4vla.config import CompatConfig
from la4vla.data.transforms import chain_from_dicts
from la4vla.model.head import FlowHead
from la4vla.model.policy import build_policy
from la4vla.model.presets import TINY
from la4vla.model.tokenizer import TINY_TOKENIZER
from la4vla.released.evo1 import RELEASES, ImportRequest, import_evo1
from la4vla.released.names import to_ours
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Observation, UserError
from tests.released import reference
from tests.released.folder import HORIZON, SIZES, STATS, WIDE, random_state, write_folder

SENTENCES = ("Push the Puck to a goal.", "lift it")
STATE = np.array([0.2, 0.5, 0.1, 0.9, 0.1, 0.6, 0.1, 0.5], np.float32)


def observations() -> list[Observation]:
    """Two, with sentences of different length and states inside and outside of the statistics."""
    draws = np.random.Generator(np.random.Philox(5))
    return [
        Observation(
            {"corner2": draws.integers(0, 256, (112, 112, 3), np.uint8)}, STATE * (1 + number), SENTENCES[number]
        )
        for number in range(2)
    ]


def bounds(values: np.ndarray, low: list[float], high: list[float]) -> np.ndarray:
    """FACTS 4.3, number by number."""
    scaled = [2 * (x - a) / (b - a + 1e-8) - 1 for x, a, b in zip(values.tolist(), low, high, strict=True)]
    return np.clip(scaled, -1, 1)


def expected(path, seen: list[Observation], noise: torch.Tensor, release: str, flash: bool) -> np.ndarray:
    """The chunks [B, T, 4], raw, of a released checkpoint's file."""
    state = {name: tensor.float() for name, tensor in torch.load(path, weights_only=True)["module"].items()}
    stats, rules = STATS["sawyer"]["mt50"], RELEASES[release]
    tokenizer = Tokenizer.from_file(str(TINY_TOKENIZER / "tokenizer.json"))
    tokenizer.encode_special_tokens = False
    picture = f"<img>{'<IMG_CONTEXT>' * TINY.image_tokens}</img>\n"
    scaffold = "".join(f"Image-{number}: {picture}" for number in (1, 2, 3))
    rows = [tokenizer.encode(scaffold + one.instruction.strip(), add_special_tokens=False).ids for one in seen]
    ids = torch.zeros(len(seen), TINY.max_tokens, dtype=torch.long)
    real = torch.zeros_like(ids, dtype=torch.bool)
    robot = torch.full((len(seen), WIDE), rules.pad_state)
    black, images = torch.zeros(112, 112, 3, dtype=torch.uint8), []
    for number, (row, one) in enumerate(zip(rows, seen, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        real[number, : len(row)] = True
        slots = (ids[number] == TINY.image_token_id).nonzero()[:, 0]
        real[number, slots[TINY.image_tokens :]] = False  # the second and the third view do not exist
        images += [torch.from_numpy(one.views["corner2"]), black, black]
        low, high = (stats["observation.state"][end] for end in ("min", "max"))
        robot[number, :8] = torch.from_numpy(bounds(one.state, low, high))
    with torch.no_grad():
        embeds = reference.embedded(state, ids, images, TINY.image_tokens, TINY.image_token_id, SIZES)
        context = reference.context(state, embeds, real, SIZES, flash)
        mask = (torch.arange(WIDE) < 4).float()[None, None]
        chunk = reference.sample(state, context, robot, noise, mask, rules.steps, SIZES, rules.time_scale)
    low, high = (np.array(stats["action"][end]) for end in ("min", "max"))
    return (chunk[:, :, :4].numpy() + 1) / 2 * (high - low + 1e-8) + low


@pytest.mark.parametrize(
    ("release", "context"), [("evo1", "flash"), ("evo1", "eager"), ("evo1_flash", "flash"), ("la4vla", "flash")]
)
def test_pixels_and_prompt_to_chunk(imported, released, release, context):
    policy, seen = ServedPolicy.load(imported(release, context)), observations()
    keys = [NoiseKey(0, "reach-v3", 3, number) for number in range(2)]
    chunks = np.stack(policy.infer(seen, keys))
    noise = policy.batch(seen, keys).noise_BTA
    path = released / "mp_rank_00_model_states.pt"
    theirs = expected(path, seen, noise, release, flash=context == "flash")
    difference = np.abs(chunks - theirs).max()
    print(f"\n{release}, {context}: {difference:.1e}, chunks up to {np.abs(theirs).max():.2f}")
    assert difference < 1e-5
    other = expected(path, seen, noise, release, flash=context != "flash")
    assert np.abs(chunks - other).max() > 1e-3, "what attention gives at masked positions is not seen here"
