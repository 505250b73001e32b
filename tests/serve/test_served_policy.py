"""Why: the policy that is evaluated must be the policy that was trained, and an episode's actions must not depend on
what else runs. Each of these has cost other projects tens of points without an error."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from la4vla import manifest
from la4vla.export import export
from la4vla.files import sha256
from la4vla.model.policy import rebuild
from la4vla.model.tokenizer import Prompter
from la4vla.rng import RngUse, generator
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import KINDS, Batch, Observation, UserError
from tests.hand_checkpoint import write_average, write_checkpoint

torch.set_num_threads(1)
VIEW = "corner4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "step_00000007", EMBODIMENT, (VIEW,))


@pytest.fixture(scope="module")
def served(folder):
    return ServedPolicy.load(folder)


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("la") / "blind", EMBODIMENT, ()))


def observation(number: int, instruction: str = "Reach the goal.", size: int = 112) -> Observation:
    draws = np.random.Generator(np.random.Philox(number))
    image = draws.integers(0, 256, (size, size, 3), np.uint8)
    return Observation({VIEW: image}, draws.uniform(0, 0.5, 4).astype(np.float32), instruction)


SEEN = [observation(0), observation(1, "Push the puck to a goal and then go home"), observation(2)]
KEYS = [NoiseKey(0, "reach-v3", 4, 0), NoiseKey(0, "push-v3", 4, 2), NoiseKey(0, "reach-v3", 5, 0)]


def test_a_chunk_is_raw_actions_of_the_embodiment(served):
    (chunk,) = served.infer(SEEN[:1], KEYS[:1])
    assert chunk.shape == (16, 4) and chunk.dtype == np.float32 and np.isfinite(chunk).all()


def test_batched_equals_single_in_any_order(served):
    alone = [served.infer([seen], [key])[0] for seen, key in zip(SEEN, KEYS, strict=True)]
    together = served.infer(SEEN, KEYS)
    backwards = served.infer(SEEN[::-1], KEYS[::-1])[::-1]
    for single, batched, reverse in zip(alone, together, backwards, strict=True):
        np.testing.assert_allclose(batched, single, atol=2e-5)
        np.testing.assert_allclose(reverse, single, atol=2e-5)


def test_the_noise_key_alone_decides_the_noise(served):
    (first,) = served.infer(SEEN[:1], KEYS[:1])
    served.infer(SEEN, KEYS)
    (again,) = served.infer(SEEN[:1], KEYS[:1])
    assert np.array_equal(first, again), "something was remembered between two questions"
    for other in (replace_key(seed=1), replace_key(task="push-v3"), replace_key(episode=5), replace_key(query=1)):
        (changed,) = served.infer(SEEN[:1], [other])
        assert np.abs(changed - first).max() > 1e-3, other


def replace_key(**changes) -> NoiseKey:
    return KEYS[0]._replace(**changes)


def test_what_is_served_is_the_saved_model(served, folder):
    """The same chunk by hand: saved weights, one row, the statistics' arithmetic written out."""
    description = manifest.read(folder)
    policy = rebuild(description.model).eval()
    policy.load_state_dict(load_file(folder / manifest.WEIGHTS))
    spec, seen = policy.spec, SEEN[0]
    ids = torch.tensor([Prompter.load(folder / manifest.TOKENIZER, spec).encode("reach the goal", (0,))])
    draws = generator(0, RngUse.SERVE, "reach-v3", 4, 0)
    draws.beta(2.0, 2.0)  # a sample's flow time comes before its noise
    noise = torch.from_numpy(draws.random((spec.horizon, spec.action_dim), dtype=np.float32)) * 2 - 1
    present = torch.arange(8) < 4
    state = torch.zeros(1, 8)
    state[0, :4] = torch.from_numpy(seen.state) / 0.7  # q01 and q99 are -0.7 and 0.7
    batch = Batch(
        kind="vla",
        input_ids_BL=ids,
        text_mask_BL=torch.ones_like(ids, dtype=torch.bool),
        images_NCHW=torch.from_numpy(seen.views[VIEW]).permute(2, 0, 1)[None],
        image_index=torch.nonzero(ids.flatten() == spec.image_token_id).flatten(),
        state_BS=state,
        state_mask_BS=present[None],
        actions_BTA=torch.zeros(1, spec.horizon, 8),
        action_mask_BTA=present.expand(1, spec.horizon, 8),
        noise_BTA=noise[None],
        time_B=torch.zeros(1),
        embodiment_B=torch.zeros(1, dtype=torch.int64),
        keys=("by hand",),
    )
    chunk = policy.sample(batch, 10)[0, :, :4].numpy()  # the actions' q01 and q99 are -1 and 1
    np.testing.assert_allclose(served.infer([seen], [NoiseKey(0, "reach-v3", 4, 0)])[0], chunk, atol=1e-6)


def test_a_seeing_policy_sees_and_a_blind_one_does_not(served, blind):
    repainted = replace(SEEN[0], views={VIEW: 255 - SEEN[0].views[VIEW]})
    unseen = replace(SEEN[0], views={})
    assert not np.array_equal(served.infer([repainted], KEYS[:1])[0], served.infer(SEEN[:1], KEYS[:1])[0])
    reference = blind.infer(SEEN[:1], KEYS[:1])[0]
    assert np.array_equal(blind.infer([repainted], KEYS[:1])[0], reference)
    assert np.array_equal(blind.infer([unseen], KEYS[:1])[0], reference)


def test_a_checkpoint_is_as_kind_it_was_trained_or_as_told(served, blind, tmp_path):
    """Trained on masked images alone it sees no more than that; and any policy that sees can be asked as all kinds."""
    leaky = ServedPolicy.load(write_checkpoint(tmp_path / "leaky", EMBODIMENT, (VIEW,), kind="la_leaky"))
    assert (served.kind, leaky.kind, blind.kind) == ("vla", "la_leaky", "la")
    assert leaky.views == (VIEW,)
    repainted = replace(SEEN[0], views={VIEW: 255 - SEEN[0].views[VIEW]})
    chunks = {kind: served.as_kind(kind).infer([SEEN[0]], KEYS[:1])[0] for kind in KINDS}
    moved = {kind: np.abs(served.as_kind(kind).infer([repainted], KEYS[:1])[0] - chunks[kind]).max() for kind in KINDS}
    assert np.array_equal(leaky.infer([SEEN[0]], KEYS[:1])[0], chunks["la_leaky"])  # the same random weights
    assert np.array_equal(blind.infer([SEEN[0]], KEYS[:1])[0], chunks["la"])
    assert moved["la"] == 0 and moved["la_leaky"] > 1e-4 and moved["vla"] > 1e-4
    assert not np.array_equal(chunks["la_leaky"], chunks["vla"])
    with pytest.raises(UserError, match="without views cannot be asked as la_leaky"):
        blind.as_kind("la_leaky")


def test_the_instruction_matters_but_not_its_spelling(served):
    (plain,) = served.infer([replace(SEEN[0], instruction="reach the goal")], KEYS[:1])
    (dotted,) = served.infer([replace(SEEN[0], instruction="  Reach the goal. ")], KEYS[:1])
    (other,) = served.infer([replace(SEEN[0], instruction="close the drawer")], KEYS[:1])
    assert np.array_equal(plain, dotted) and not np.array_equal(plain, other)


def test_untrained_is_the_same_architecture_with_other_weights(served, folder):
    first, again, other = (ServedPolicy.untrained(folder, seed) for seed in (5, 5, 6))
    shapes = {name: tensor.shape for name, tensor in served.policy.state_dict().items()}
    assert {name: tensor.shape for name, tensor in first.policy.state_dict().items()} == shapes
    chunk = first.infer(SEEN[:1], KEYS[:1])[0]
    assert np.array_equal(again.infer(SEEN[:1], KEYS[:1])[0], chunk)
    assert not np.array_equal(other.infer(SEEN[:1], KEYS[:1])[0], chunk)
    assert len({served.identity, first.identity, other.identity}) == 3 and first.step == 0


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (replace(SEEN[0], views={}), r"trained with the view `corner4`, the env shows none"),
        (replace(SEEN[0], views={"corner2": SEEN[0].views[VIEW]}), r"the env shows corner2"),
        (replace(SEEN[0], state=np.zeros(8, np.float32)), r"shape \[8\]; this policy's embodiment has 4 dims"),
    ],
)
def test_observations_that_do_not_fit_are_refused(served, seen, message):
    with pytest.raises(UserError, match=message):
        served.infer([seen], KEYS[:1])


def test_what_was_trained_with_flash_attention_is_asked_with_sdpa(served, folder, tmp_path):
    """flash-attn is not installed here; where it is, it takes neither fp32 nor a CPU."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    description = manifest.read(copy)
    replace(description, model={**description.model, "attention": "flash_attention_2"}).write(copy)
    assert np.array_equal(ServedPolicy.load(copy).infer(SEEN, KEYS), served.infer(SEEN, KEYS))
    assert ServedPolicy.untrained(copy, 5).policy.backbone.attention == "sdpa"


def test_another_embodiment_is_refused_and_the_difference_named(served):
    served.check(EMBODIMENT, (VIEW,))
    flipped = replace(EMBODIMENT, action=replace(EMBODIMENT.action, gripper_open=1.0))
    with pytest.raises(UserError, match=r"action.gripper_open is -1.0 here and 1.0 in the env"):
        served.check(flipped, (VIEW,))
    with pytest.raises(UserError, match=r"control_hz is 80.0 here and 20.0"):
        served.check(replace(EMBODIMENT, control_hz=20.0), (VIEW,))
    with pytest.raises(UserError, match=r"view `corner4`"):
        served.check(EMBODIMENT, ("corner2",))


def test_changed_weights_are_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = load_file(copy / manifest.WEIGHTS)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, copy / manifest.WEIGHTS)
    with pytest.raises(UserError, match=r"not the weights its manifest describes"):
        ServedPolicy.load(copy)
    (copy / manifest.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"missing from its checkpoint"):
        ServedPolicy.load(copy)


def spoilt(where: str, value: object = None):
    """An edit of a manifest: the entry at a dotted path is set, or is gone where the value is None."""

    def edit(copy):
        raw = json.loads((copy / manifest.MANIFEST).read_text())
        *above, last = where.split(".")
        inner = raw
        for key in above:
            inner = inner[int(key) if isinstance(inner, list) else key]
        inner[last] = value
        if value is None:
            del inner[last]
        (copy / manifest.MANIFEST).write_text(json.dumps(raw))

    return edit


def tokenizer_of(text: str):
    return lambda copy: (copy / manifest.TOKENIZER / "tokenizer.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (tokenizer_of('{"added_tokens": [], "mod'), "tokenizer"),
        (tokenizer_of('{"added_tokens": [], "model": {}}'), "tokenizer"),
        (tokenizer_of("3"), "tokenizer"),
        (spoilt("robots.0.embodiment.state"), "embodiment"),
        (spoilt("robots.0.embodiment.action.names", 7), "embodiment"),
        (spoilt("model.size"), "model"),
        (spoilt("model.readout"), "model"),
        (spoilt("model.size", {}), "model"),
        (spoilt("model.size.width", "wide"), "model"),
        (spoilt("model.size.llm_mlp", 8), "model"),
        (spoilt("model.size.vision_heads", 0), "model"),
        (spoilt("config.flow"), "config"),
        (spoilt("config.flow.step", 3), "config"),
        (spoilt("config.flow.steps", "ten"), "config"),
        (spoilt("config.stages", []), "config"),
        (spoilt("robots.0.views", 1), "config"),
        (spoilt("robots.0.transforms", 1), "transforms"),
    ],
)
def test_each_damaged_part_is_one_sentence_with_the_cure(folder, tmp_path, spoil, part):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(UserError, match=rf"{part}.*(damaged|disagree).*; (copy the checkpoint again|use the version)"):
        ServedPolicy.load(copy)


def test_a_run_folder_means_its_newest_complete_checkpoint(folder, served, tmp_path):
    (folder.parent / "step_00000009").mkdir(exist_ok=True)
    assert ServedPolicy.load(folder.parent.parent).identity == served.identity
    with pytest.raises(UserError, match=r"not a complete checkpoint"):
        ServedPolicy.load(tmp_path)


def test_the_average_is_served_by_choice_and_named(folder, served, tmp_path):
    """It lies over what trained alone; all else is the checkpoint's."""
    copy = write_average(shutil.copytree(folder, tmp_path / "averaged"), seed=5)
    raw, average = (ServedPolicy.load(copy, weights=which) for which in manifest.WHICH_WEIGHTS)
    assert raw.identity == served.identity and np.array_equal(raw.infer(SEEN, KEYS), served.infer(SEEN, KEYS))
    assert average.identity == f"ema-{sha256(copy / manifest.EMA)}"
    stored, other = load_file(copy / manifest.WEIGHTS), load_file(copy / manifest.EMA)
    state = average.policy.state_dict()
    assert all(torch.equal(state[name], other.get(name, stored[name])) for name in stored)
    assert np.abs(np.array(average.infer(SEEN, KEYS)) - np.array(raw.infer(SEEN, KEYS))).max() > 1e-3
    assert "of the average of its weights" in export(copy, tmp_path / "out", weights="ema")
    alone = ServedPolicy.load(tmp_path / "out")
    assert np.array_equal(alone.infer(SEEN, KEYS), average.infer(SEEN, KEYS))
    assert manifest.read(tmp_path / "out").ema_sha256 == ""
    with pytest.raises(UserError, match=r"holds no average of its weights; train with optim\.ema_decay"):
        ServedPolicy.load(folder, weights="ema")
    write_average(copy, seed=6)
    (copy / manifest.MANIFEST).write_text(
        (copy / manifest.MANIFEST).read_text().replace('"ema_sha256": "', '"ema_sha256": "0')
    )
    with pytest.raises(UserError, match=r"its ema\.safetensors is not that of its manifest"):
        ServedPolicy.load(copy, weights="ema")
