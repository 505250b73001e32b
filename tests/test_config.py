"""Why: a config that silently drops a key costs days of GPU time; every slip must be named."""

from pathlib import Path

import pytest

from la4vla import config
from la4vla.types import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*/*.yaml"))
RECIPES = [path for path in CONFIGS if path.name != "common.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_resolves_and_says_what_it_costs(path):
    config.load(path, ["run.init_from=somewhere"] if path.name == "finetune_metaworld.yaml" else [])
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert "Expected result" in header and "Hardware" in header


@pytest.mark.parametrize("preset", ["tiny", "la4vla_1b"])
def test_each_preset_has_every_paradigm(preset):
    names = {path.stem for path in RECIPES if path.parent.name == preset}
    assert {"base", "la", "vla", "la_vla", "mixpt", "finetune_metaworld"} <= names


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
        ("stages.pretrain.mixture.la=-1", "positive"),
        ("stages.pretrain.train=[visoin]", "nearest is `vision`"),
        ("stages.pretrain.train=[vision,head]", "without a vla source"),
        ("stages.pretrain.global_batch=33", "multiple of data.streams"),
        ("model.readout=pertoken", "nearest is `per_token`"),
        ("steps", "key=value"),
    ],
)
def test_a_slip_is_one_sentence_with_the_cure(recipe, override, words):
    with pytest.raises(UserError) as caught:
        config.load(recipe, [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_that_must_be_given_is_named(recipe):
    recipe.write_text(recipe.read_text().replace("run: {dir: runs/x}\n", ""))
    with pytest.raises(UserError, match=r"`run\.dir` has no value"):
        config.load(recipe)


@pytest.mark.parametrize("text", ["a: [1", "schema: trian\n", "- 1\n"], ids=["syntax", "schema", "list"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        config.load(tmp_path / "bad.yaml")


def test_the_command_prints_the_resolved_config_and_fails_on_a_typo(recipe, capsys):
    assert config.main([str(recipe), "run.seed=7"]) == 0
    assert "seed: 7" in capsys.readouterr().out
    assert config.main([str(recipe), "run.sed=7"]) == 2
    assert "nearest key is `seed`" in capsys.readouterr().err
