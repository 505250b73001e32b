"""Why: a config that silently drops a key costs days of GPU time; every slip must be named."""

import pytest
from omegaconf import OmegaConf

from la4vla import config
from la4vla.config.__main__ import main as config_main
from la4vla.shell import exit_status
from la4vla.types import UserError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run: {dir: runs/x}\n"
        "data: {sources: {la: {path: data/la, kind: la}, vla: {path: data/vla, kind: vla}}}\n"
        "stages: {pretrain: {mixture: {la: 1}, steps: 10}}\n"
    )
    return path


def test_precedence_is_defaults_then_base_then_file_then_command_line(recipe):
    child = recipe.with_name("child.yaml")
    child.write_text("base: recipe.yaml\nstages: {pretrain: {steps: 20, lr: 1.0e-3}}\n")
    loaded = config.load(child, ["stages.pretrain.lr=0.5"])
    assert (loaded.stages["pretrain"].steps, loaded.stages["pretrain"].lr) == (20, 0.5)
    assert loaded.stages["pretrain"].micro_batch == config.StageConfig(steps=1).micro_batch
    assert loaded.run.dir == "runs/x"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engin.name=plain", "nearest key is `engine`"),
        ("stages.pretrain.lrr=1", "nearest key is `lr`"),
        ("stages.pretrain.steps=many", "`stages.pretrain.steps`"),
        ("stages.pretrain.mixture.droid=1", "is not one of la, vla"),
        ("stages.pretrain.mixture.la=-1", "must be in [0, inf)"),
        ("stages.pretrain.mixture.la=nan", "must be in [0, inf)"),
        ("stages.pretrain.mixture.la=0", "a share above 0"),
        ("stages.pretrain.mixture.droid=0", "is not one of la, vla"),
        ("stages.pretrain.mixture={la", "`stages.pretrain.mixture={la`: not valid YAML"),
        ("data.sources.la.views=[1,2", "not valid YAML"),
        ("run.dir='", "not valid YAML"),
        ("run.dir=@", "close or quote it"),
        ("data.sources=[1]", "a list stands where"),
        ("run=x", "not a subclass of RunConfig"),
        ("stages.pretrain.train=[visoin]", "nearest is `vision`"),
        ("stages.pretrain.train=[vision,head]", "without a vla source"),
        ("data.sources.la.kind=la_leeky", "nearest is `la_leaky`"),
        ("stages.pretrain.global_batch=33", "multiple of data.streams"),
        ("stages.pretrain.lr=-1e-5", "stages.pretrain.lr is -1e-05; it must be in [0, inf)"),
        ("stages.pretrain.lr=inf", "lr is inf"),
        ("stages.pretrain.warmup_steps=-1", "warmup_steps"),
        ("stages.pretrain.steps=0", "must be in [1, inf)"),
        ("stages.pretrain.schedule=linaer", "nearest is `linear`"),
        ("stages.pretrain.lr_groups.haed=1", "stages.pretrain.lr_groups: `haed` is not one of llm, head; the nearest"),
        ("stages.pretrain.lr_groups.vision=1", "stages.pretrain.lr_groups: `vision` is not one of llm, head"),
        ("stages.pretrain.lr_groups.head=-1", "stages.pretrain.lr_groups.head is -1"),
        ("stages.pretrain.min_lr_ratio=2", "min_lr_ratio is 2.0; it must be in [0, 1]"),
        ("stages.pretrain.decay_share=0", "decay_share is 0.0; it must be in (0, 1]"),
        ("stages.pretrain={schedule: constant, min_lr_ratio: 0.1}", "schedule is constant, which never goes down"),
        ("stages.pretrain.loss_weights.la=-1", "loss_weights.la"),
        ("flow.steps=0", "flow.steps is 0; it must be in [1, inf)"),
        ("flow.time_alpha=0", "must be in (0, inf)"),
        ("flow.time_beta=nan", "flow.time_beta is nan"),
        ("optim.clip_norm=0", "must be in (0, inf]"),
        ("model.dropout=1", "must be in [0, 1)"),
        ("data.augment=1.5", "must be in [0, 1]"),
        ("data.augmentation=gpla", "data.augment is 0, so nothing is augmented"),
        ("run.seed=-1", "run.seed is -1; it must be in [0, inf)"),
        ("engine.max_skipped_steps=0", "must be in [1, inf)"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps"),
        ("log.every_steps=-3", "log.every_steps"),
        ("checkpoint.keep_every=1500", "must be a multiple of checkpoint.every_steps"),
        ("run.init_parts.take=[head.*]", "run.init_from names none; set it"),
        ("model.action_dim=-1", "model.action_dim is -1; it must be in [0, inf)"),
        ("model.readout=pertoken", "nearest is `per_token`"),
        ("steps", "key=value"),
    ],
)
def test_a_slip_is_one_sentence_with_the_cure(recipe, override, words):
    with pytest.raises(UserError) as caught:
        config.load(recipe, [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_leaky_source_trains_vision_and_needs_a_backend_that_can_mask(recipe):
    leaky = ["data.sources.la.kind=la_leaky", "stages.pretrain.train=[vision,projector,llm,head]"]
    assert config.load(recipe, leaky).data.sources["la"].kind == "la_leaky"
    with pytest.raises(UserError, match=r"flash_attention_2 cannot take; set model\.attention=sdpa"):
        config.load(recipe, [*leaky, "model.attention=flash_attention_2", "engine.precision=bf16"])


def test_la_rows_must_reach_something_that_trains(recipe):
    """Without it their loss has no gradient at all, which torch says with a traceback on every rank."""
    both = ["data.sources.vla={path: b, kind: vla}", "stages.pretrain.mixture={la: 1, vla: 1}"]
    with pytest.raises(UserError, match=r"trains vision and projector, which la rows never reach; .* or add head"):
        config.load(recipe, [*both, "stages.pretrain.train=[vision,projector]"])
    config.load(recipe, [*both, "stages.pretrain.train=[vision,projector,head]"])
    config.load(recipe, [*both, "stages.pretrain.mixture.la=0", "stages.pretrain.train=[vision,projector]"])


LORA = ("model.lora.rank=4", "model.weights=w", "stages.pretrain.train=[lora,head]")
TEXT = ("data.sources.text={path: c, kind: text}", "stages.pretrain.mixture.text=1")
VLM = ("learner=vlm", *TEXT, "stages.pretrain.mixture.la=0", "model.preset=tiny_vlm")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("stages.pretrain.train=[lora]",), "trains lora and model.lora.rank is 0; set a rank"),
        ((LORA[0], LORA[1]), "no adapter trains; add lora"),
        ((LORA[0], LORA[2]), "set model.weights or run.init_from"),
        ((*LORA, "model.lora.targets=[lm]"), "nearest is `llm`"),
        ((*LORA, "model.lora.rank=-1"), "model.lora.rank is -1"),
        ((*LORA, "engine.compute=frozen_bf16"), "set model.lora.rank and engine.precision=bf16"),
        (("engine.compute=frozen_bf16", "engine.precision=bf16"), "set model.lora.rank"),
        ((*TEXT, "stages.pretrain.mixture.la=0", "stages.pretrain.train=[head]"), "which conversations never reach"),
        (("stages.pretrain.insulate=true",), "so nothing teaches head, llm but head"),
        ((*TEXT, "stages.pretrain.insulate=true", "stages.pretrain.train=[llm]"), "which la rows never reach"),
        (("learner=vlm",), "learner vlm learns conversations alone"),
        ((*VLM, "model.llm_layers=2"), "model.llm_layers is a size of the policy, and learner is vlm"),
        ((*VLM, "stages.pretrain.insulate=true"), "with learner=vlm its language head is `head`"),
        ((*VLM, "engine.name=deepspeed", "engine.zero_stage=3"), "set engine.zero_stage=2 for learner vlm"),
    ],
)
def test_adapters_and_conversations_that_teach_nothing_are_one_sentence(recipe, overrides, words):
    with pytest.raises(UserError) as caught:
        config.load(recipe, overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        LORA,
        (*LORA, "engine.compute=frozen_bf16", "engine.precision=bf16"),
        (*TEXT, "stages.pretrain.insulate=true", "stages.pretrain.train=[llm,head,language_head]"),
        ("stages.pretrain.insulate=true", "stages.pretrain.train=[head]"),
        VLM,
    ],
)
def test_adapters_and_conversations_that_teach_something_pass(recipe, overrides):
    assert config.load(recipe, overrides)


def test_flash_attention_needs_half_precision(recipe):
    with pytest.raises(UserError, match=r"bf16 only; set engine\.precision=bf16, or sdpa"):
        config.load(recipe, ["model.attention=flash_attention_2"])
    config.load(recipe, ["model.attention=flash_attention_2", "engine.precision=bf16"])


@pytest.mark.parametrize("override", ["optim.clip_norm=inf", "data.augment=1", "stages.pretrain.lr=0"])
def test_the_ends_of_intervals_are_allowed(recipe, override):
    key, value = override.split("=")
    loaded = OmegaConf.create(config.to_yaml(config.load(recipe, [override])))
    assert OmegaConf.select(loaded, key) == float(value)


def test_a_share_of_0_takes_a_source_out(recipe):
    """Layers are merged, so there is no other way to drop what a `base:` mixes."""
    child = recipe.with_name("child.yaml")
    child.write_text("base: recipe.yaml\nstages: {pretrain: {mixture: {la: 0, vla: 2}}}\n")
    assert config.load(child).stages["pretrain"].mixture == {"vla": 2.0}
    overrides = ["stages.pretrain.mixture.la=1", "stages.pretrain.mixture.vla=0"]
    assert config.load(child, overrides).stages["pretrain"].mixture == {"la": 1.0}
    with pytest.raises(UserError, match="without a vla source"):
        config.load(child, [*overrides, "stages.pretrain.train=[vision]"])


def test_a_base_that_is_not_there_names_who_leads_to_it(recipe):
    """A recipe that was copied into another folder than its common.yaml."""
    child = recipe.with_name("child.yaml")
    child.write_text("base: common.yaml\n")
    with pytest.raises(UserError, match=r"common.yaml: no such config file; the `base:` of .*child.yaml leads there"):
        config.load(child)


def test_a_base_that_leads_back_is_refused(recipe):
    recipe.write_text("base: recipe.yaml\n" + recipe.read_text())
    with pytest.raises(UserError, match="leads back to itself"):
        config.load(recipe)


def test_nothing_behind_the_equals_sign_is_the_empty_string(recipe):
    recipe.write_text(recipe.read_text() + "model: {weights: somewhere}\n")
    assert config.load(recipe, ["model.weights="]).model.weights == ""


def test_a_value_that_must_be_given_is_named(recipe):
    recipe.write_text(recipe.read_text().replace("run: {dir: runs/x}\n", ""))
    with pytest.raises(UserError, match=r"`run\.dir` has no value"):
        config.load(recipe)


@pytest.mark.parametrize(
    "text",
    ["a: [1", "schema: trian\n", "schema: [a]\n", "- 1\n", "3\n", "base: 3\n"],
    ids=["syntax", "schema", "schema-list", "list", "number", "base"],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml|no such config file"):
        config.load(tmp_path / "bad.yaml")


def test_the_command_prints_the_resolved_config_and_fails_on_a_typo(recipe, capsys):
    assert exit_status(config_main, [str(recipe), "run.seed=7"]) == 0
    assert "seed: 7" in capsys.readouterr().out
    assert exit_status(config_main, [str(recipe), "run.sed=7"]) == 2
    assert "nearest key is `seed`" in capsys.readouterr().err
