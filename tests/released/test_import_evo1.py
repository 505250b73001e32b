"""Why: an imported checkpoint that computes anything else than its own code did gives numbers that belong to nobody. So
a checkpoint of the released layout with random weights is compared with the release written out once more
(reference.py), from pixels, prompt and state to the chunk, in fp32 and for every switch of model.compat."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from la4vla import manifest
from la4vla.cli import main
from la4vla.config import CompatConfig, ModelConfig, StageConfig, TrainConfig, validate
from la4vla.data.transforms import chain_from_dicts
from la4vla.model.head import FlowHead
from la4vla.model.policy import Policy, build_policy
from la4vla.model.presets import LA4VLA_1B, TINY
from la4vla.model.tokenizer import TINY_TOKENIZER
from la4vla.released.evo1 import RELEASES, ImportRequest, import_evo1, write_back
from la4vla.released.names import place_of, to_ours, to_released
from la4vla.serve.dialect import Session
from la4vla.serve.dialects import build
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Observation, Sample, UserError
from tests.fixtures import write_shards
from tests.hand_checkpoint import write_checkpoint
from tests.released import reference
from tests.released.folder import HORIZON, SIZES, STATS, WIDE, random_state, write_folder
from tests.train.conftest import run_here
from tests.train.launch import write_config

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
    assert difference < 1e-6 * max(1.0, np.abs(theirs).max())
    other = expected(path, seen, noise, release, flash=context != "flash")
    assert np.abs(chunks - other).max() > 1e-3, "what attention gives at masked positions is not seen here"


@pytest.mark.parametrize("time_scale", [999, 1000])
@pytest.mark.parametrize("pad_state", [0.0, -1.0])
def test_the_head_is_the_releases_for_every_switch(time_scale, pad_state):
    state = random_state(1, torch.float32)
    compat = CompatConfig(time_scale=time_scale, pad_state=pad_state)
    size = replace(TINY, horizon=HORIZON, state_dim=WIDE, action_dim=WIDE)
    head = FlowHead(size, "flatten", dropout=0.0, embodiments=0, compat=compat).eval()
    ours = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    of_head = {name: tensor for name, tensor in state.items() if name.startswith("action_head.")}
    found = to_ours(of_head, ours)
    head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in found.items()})
    draws = torch.Generator().manual_seed(2)
    x, context = (torch.randn(2, rows, width, generator=draws) for rows, width in ((HORIZON, WIDE), (9, TINY.width)))
    robot = torch.rand(2, WIDE, generator=draws)
    present = torch.arange(WIDE) < 8
    padded = torch.where(present, robot, torch.tensor(pad_state))
    token = reference.state_token(state, padded)
    source = torch.cat([context, token[:, None]], dim=1)
    numbers = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        cache = head.encode_context(context, torch.ones(2, 9, dtype=torch.bool), robot, present.expand(2, -1), numbers)
        for time in (0.0, 0.29, 0.58, 31 / 32):
            theirs = reference.velocity(state, x, time, source, SIZES, time_scale)
            mine = head.velocity(x, torch.full((2,), time), cache)
            assert (mine - theirs).abs().max() < 1e-6 * max(1.0, float(theirs.abs().max())), time
    other = reference.velocity(state, x, 0.29, source, SIZES, 1999 - time_scale)
    assert (other - reference.velocity(state, x, 0.29, source, SIZES, time_scale)).abs().max() > 1e-4


def test_at_full_size_the_names_are_those_of_the_release():
    """FACTS 4.5: 116 entries of the head, and shapes that were read off the released code."""
    with torch.device("meta"):
        whole = Policy(LA4VLA_1B, "flatten", "sdpa", 0.2, False, (), CompatConfig(999, 0.0, "flash")).state_dict()
    back = to_released(whole, {place_of(name).name: "float32" for name in whole})
    assert sum(name.startswith("action_head.") for name in back) == 116
    shapes = {
        "action_head.time_pos_enc.pe": (1, 1000, 896),
        "action_head.action_encoder.pos_encoding.pe": (1, 50, 896),
        "action_head.transformer_blocks.7.attn.in_proj_weight": (2688, 896),
        "action_head.transformer_blocks.0.ff.0.weight": (3584, 896),
        "action_head.seq_pool_proj.weight": (896, 44800),
        "action_head.mlp_head.fc2.linear.weight": (1200, 1024),
        "action_head.state_encoder.fc1.linear.weight": (1024, 24),
        "embedder.model.vision_model.encoder.layers.23.attn.qkv.bias": (3072,),
        "embedder.model.vision_model.embeddings.position_embedding": (1, 1025, 1024),
        "embedder.model.mlp1.1.weight": (896, 4096),
        "embedder.model.language_model.model.embed_tokens.weight": (151674, 896),
        "embedder.model.language_model.model.layers.13.mlp.down_proj.weight": (896, 4864),
        "embedder.model.language_model.model.norm.weight": (896,),
    }
    assert {name: tuple(back[name].shape) for name in shapes} == shapes
    tables = 1000 * 896 + 50 * 896
    assert sum(tensor.numel() for tensor in back.values()) == 775_198_640 + tables


def test_switches_are_off_by_default_and_each_changes_something(imported):
    """A switch that does nothing would hide that a checkpoint needs it."""
    assert build_policy(ModelConfig(), 0).description["compat"] == {"time_scale": 0, "pad_state": 0.0, "context": "own"}
    chunks = {}
    for name, compat in (
        ("theirs", {}), ("time", {"time_scale": 999}), ("state", {"pad_state": 0.0}), ("context", {"context": "eager"}),
    ):  # fmt: skip
        policy = ServedPolicy.load(imported())
        changed = replace(CompatConfig(**policy.policy.description["compat"]), **compat)
        policy.policy.head.compat = changed
        language = policy.policy.backbone.internvl.language_model
        if changed.context == "eager":
            language.config._attn_implementation = "sdpa"
        chunks[name] = policy.infer(observations()[:1], [NoiseKey(0, "reach-v3", 0, 0)])[0]
    for name in ("time", "state", "context"):
        assert np.abs(chunks[name] - chunks["theirs"]).max() > 1e-5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_written_back_every_tensor_is_byte_equal(released, imported, tmp_path, capsys, dtype):
    folder, run = released, imported()
    if dtype == torch.float32:
        folder, run = write_folder(tmp_path / "wide", random_state(3, dtype)), tmp_path / "run"
        assert main(["import", "evo1", str(folder), "--out", str(run), "--preset", "tiny"]) == 0
        assert "`evo1` (--release): time index x 1000" in capsys.readouterr().out
    assert main(["export", str(run), str(tmp_path / "back"), "--layout", "evo1"]) == 0
    folders = folder, tmp_path / "back"
    before, after = (torch.load(one / "mp_rank_00_model_states.pt", weights_only=True) for one in folders)
    assert list(after["module"]) == list(before["module"]) and after["step"] == 7
    for name, tensor in before["module"].items():
        assert tensor.dtype == dtype and torch.equal(tensor, after["module"][name]), name
    for name in ("config.json", "norm_stats.json"):
        assert (folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_statistics_become_the_released_rule(imported):
    description = manifest.read(manifest.resolve(imported()))
    rule = chain_from_dicts(description.robot().transforms).normalize
    valid = np.arange(HORIZON) < HORIZON - 1
    actions = np.tile(np.float32([0.5, 0.9, 2.0, 0.3]), (HORIZON, 1))
    done = rule(Sample("la", "key", "", STATE, actions, valid, np.ones(8, bool), np.ones(4, bool)))
    low, high = (STATS["sawyer"]["mt50"]["observation.state"][end] for end in ("min", "max"))
    np.testing.assert_allclose(done.state, bounds(STATE, low, high), atol=1e-6)
    assert done.state[7] == -1.0, "a dimension of the state that never moved"
    assert done.action[0, 2] == 1.0 and done.action[0, 3] == 0.0 and done.action[-1].tolist() == [0.0] * 4
    np.testing.assert_allclose(rule.inverse(done.action[:1], STATE)[0], [0.5, 0.9, 0.7, 0.3], atol=1e-6)


def test_bad_input_is_one_sentence(released, tmp_path):
    def refused(match: str, folder=released, **asked) -> None:
        with pytest.raises(UserError, match=match):
            import_evo1(ImportRequest(folder, tmp_path / "out", **{"preset": "tiny", **asked}))
        assert not (tmp_path / "out").exists()

    def changed(name: str, state: dict, stats: dict) -> Path:
        return write_folder(tmp_path / name, state, stats)

    finger = tmp_path / "finger.yaml"
    vector = {"names": ["gripper"], "reference": "absolute"}
    finger.write_text(json.dumps({"name": "finger", "control_hz": 10, "state": vector, "action": vector}))
    state, one = random_state(0, torch.bfloat16), STATS["sawyer"]["mt50"]
    broken = {**state, "action_head.norm_out.bias": state["action_head.norm_out.bias"] * torch.nan}
    still = {"sawyer": {"mt50": {**one, "action": {**one["action"], "std": [0.4, 0.3, 0.4, 0.0]}}}}
    refused("no mp_rank_00_model_states.pt in it", folder=tmp_path)
    refused("choose the --preset of its size", preset="small")
    refused("--release: `evo2` is not one of evo1, evo1_flash, la4vla", release="evo2")
    refused("--stats arm/x: norm_stats.json does not have it; use one of sawyer/mt50", stats="arm/x")
    refused("the state has 8 dims, robot finger has 1", robot=str(finger), views=("front",))
    refused("name its cameras with --views", robot=str(finger))
    refused("not one of metaworld, libero", robot="metawurld", views=("front",))
    refused("3 image slots", views=("a", "b", "c", "d"))
    refused("gripper hardly moved in training", normalization="normal", folder=changed("still", state, still))
    refused("action_head.norm_out.bias is not finite", folder=changed("nan", broken, STATS))
    two = changed("two", state, {"sawyer": {"a": one, "b": one}})
    refused("holds 2 sets; choose with --stats one of sawyer/a, sawyer/b", folder=two)
    torch.save({"module": state, "trainer": OnlyCodeBringsItBack()}, two / "mp_rank_00_model_states.pt")
    refused("nothing in it is executed", folder=two)
    with pytest.raises(UserError, match="was not imported"):
        write_back(write_checkpoint(tmp_path / "ours", EMBODIMENT, ("corner4",)), tmp_path / "back")


class OnlyCodeBringsItBack:
    pass


def test_the_releases_masks_are_not_left_to_another_backend():
    config = TrainConfig(stages={"only": StageConfig(steps=1)})
    config.model = ModelConfig(attention="flash_attention_2", compat=CompatConfig(999, 0.0, "flash"))
    config.engine.precision = "bf16"
    with pytest.raises(UserError, match=r"set model\.attention=sdpa, which computes what flash_attention_2 gives"):
        validate(config)


def test_the_releases_client_is_answered_by_an_imported_run(imported):
    """The message of Evo-1's MetaWorld client: three pictures in BGR, of which two do not exist."""
    policy, (seen, _) = ServedPolicy.load(imported()), observations()
    image, absent = seen.views["corner2"][:, :, ::-1].tolist(), np.zeros((2, 2, 3), int).tolist()
    message = {
        "image": [image, absent, absent],
        "image_mask": [1, 0, 0],
        "state": seen.state.tolist(),
        "prompt": seen.instruction,
        "action_mask": [int(dim < 4) for dim in range(24)],
    }
    asked = build("evo1", policy).read(json.dumps(message), Session(0, "reach-v3", 3))
    np.testing.assert_array_equal(asked.observations[0].views["corner2"], seen.views["corner2"])
    np.testing.assert_array_equal(asked.observations[0].state, seen.state)
    assert asked.observations[0].instruction == SENTENCES[0]


def test_a_run_that_starts_from_it_keeps_the_switches(imported, tmp_path, capsys):
    """Dropped in silence, the same weights would be another model."""
    write_shards(tmp_path / "la", 24, 4)
    write_shards(tmp_path / "vla", 24, 4, views=["front"])
    config = write_config(tmp_path, tmp_path, "again")
    assert run_here(str(config), f"run.init_from={imported()}", "model.readout=flatten") == 2
    assert "set model.compat={'time_scale': 1000, 'pad_state': -1.0, 'context': 'flash'}" in capsys.readouterr().err


def test_it_trains_and_blind_rows_teach_vision_nothing(imported):
    served = ServedPolicy.load(imported())
    keys = [NoiseKey(0, "reach-v3", 3, number) for number in range(2)]
    policy = served.policy.requires_grad_(True).train()
    vision = policy.groups()["vision"][0]
    for kind, learns in (("la", False), ("vla", True)):
        batch = served.as_kind(kind).batch(observations(), keys)
        policy.zero_grad(set_to_none=True)
        policy(batch)[0].backward()
        assert all(parameter.grad is not None for parameter in policy.head.parameters())
        grads = [parameter.grad for parameter in vision.parameters()]
        assert [grad is not None and bool(grad.any()) for grad in grads].count(True) == (len(grads) if learns else 0)
