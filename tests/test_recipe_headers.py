"""Why: a recipe's header is what people read before they spend hours on it. It states cost, hardware and expected
result in numbers or says where they stand, and its commands must be runnable as they are."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.perturb import perturb
from benchmarks.results import protocols
from benchmarks.study import config as study_config
from benchmarks.study import measure, plan
from benchmarks.sweep.jobs import SweepConfig
from la4vla import config
from la4vla.config import TrainConfig
from la4vla.types import UserError
from tests import recipe_header

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
WITH_HEADERS = [path for path in CONFIGS if path.name != "common.yaml"]
SWEEPS = [path for path in CONFIGS if path.parent.name == "sweep"]
STUDIES = [path for path in CONFIGS if "\nschema: study\n" in path.read_text()]
RECIPES = [path for path in WITH_HEADERS if path not in SWEEPS + STUDIES]
ASKS = (
    *("tiny/finetune_metaworld", "la4vla_1b/finetune_metaworld", "la4vla_1b/finetune_libero"),
    *("la4vla_1b/finetune_metaworld_lora", "la4vla_1b/finetune_libero_lora"),
)
FROM_WEIGHTS = [path for path in RECIPES if f"{path.parent.name}/{path.stem}" in ASKS]

UNKNOWN = "not yet measured"
HARDWARE = re.compile(r"\b\d+ CPU cores|\b\d+ x \d+ GB|\bGPUs? of \d+ GB")
COST = re.compile(r"\d (?:seconds?|minutes?|hours?|core-hours?|GPU-hours)\b")
SAMPLES = re.compile(r"([\d.,]+)( M)? (?:LA |VLA )?samples")
PRODUCT = re.compile(r"([\d.]+) M samples x ([\d.]+) TFLOP[^=]*= ([\d.]+) EFLOP")


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def loaded(path, overrides=()) -> Any:
    """A config as its own command loads it."""
    if path in SWEEPS:
        return config.load(path, overrides, schema=SweepConfig)
    return study_config.load(path, overrides) if path in STUDIES else config.load(path, overrides)


@pytest.mark.parametrize("path", WITH_HEADERS, ids=name_of)
def test_a_header_states_hardware_cost_and_expected_result(path):
    found = recipe_header.fields(path)
    assert {name: len(texts) for name, texts in found.items()} == {"Hardware": 1, "Cost": 1, "Expected result": 1}
    hardware, cost, expected = (found[name][0] for name in ("Hardware", "Cost", "Expected result"))
    assert HARDWARE.search(hardware), hardware
    assert COST.search(cost) or cost.startswith(UNKNOWN), cost
    number = re.search(r"\d", recipe_header.POINTER.sub("", expected))
    assert number or recipe_header.pointers(expected) or expected.startswith(UNKNOWN), expected


@pytest.mark.parametrize("path", WITH_HEADERS, ids=name_of)
def test_what_a_header_points_to_is_there(path):
    for file, heading in recipe_header.pointers(recipe_header.fields(path)["Expected result"][0]):
        file = file if file.exists() else path.parent / file.name  # a config beside it goes by its name alone
        assert file.is_file(), f"{path}: {file}"
        if file.suffix == ".md":
            assert heading and f"\n## {heading}\n" in file.read_text(), f"{file.name} has no section `{heading}`"


@pytest.mark.parametrize("path", WITH_HEADERS, ids=name_of)
def test_the_commands_of_a_header_load_what_they_name(path):
    commands = [command for command in recipe_header.commands(path) if command.config]
    assert str(path.relative_to(ROOT)) in {command.config for command in commands}
    for command in commands:
        resolved = loaded(ROOT / command.config, command.overrides)
        if isinstance(resolved, TrainConfig):
            assert resolved.data.streams % command.processes == 0
            assert not resolved.run.init_from or is_written(resolved.run.init_from), command.text


def is_written(checkpoint):
    """Whether the folder is a run of one of the recipes, or its last checkpoint."""
    runs = {loaded(path).run.dir: loaded(path) for path in RECIPES if path not in FROM_WEIGHTS and trains(path)}
    run, _, step = checkpoint.partition("/checkpoints/step_")
    return run in runs and (not step or int(step) == sum(stage.steps for stage in runs[run].stages.values()))


def trains(path):
    return "\nschema:" not in path.read_text() and "construct" not in path.stem


@pytest.mark.parametrize("path", [path for path in RECIPES if trains(path)], ids=name_of)
def test_the_samples_of_a_headers_cost_are_the_recipes(path):
    """And what it multiplies them with gives what stands behind the equals sign."""
    cost = recipe_header.fields(path)["Cost"][0]
    command = next(item for item in recipe_header.commands(path) if item.config == str(path.relative_to(ROOT)))
    total = sum(measure.samples(loaded(path, command.overrides)).values())
    for number, millions in SAMPLES.findall(cost):
        assert float(number.replace(",", "")) * (1e6 if millions else 1) == pytest.approx(total, rel=0.05)
    for samples, each, product in PRODUCT.findall(cost):
        assert float(samples) * float(each) == pytest.approx(float(product), rel=0.03)


def test_most_costs_are_counted_in_samples():
    """Without it the test above could pass because no header says a number of samples any more."""
    counted = [path for path in RECIPES if trains(path) and SAMPLES.search(recipe_header.fields(path)["Cost"][0])]
    assert len(counted) >= 8


@pytest.mark.parametrize("path", FROM_WEIGHTS, ids=name_of)
def test_finetuning_without_a_checkpoint_is_refused(path):
    """It would be paradigm `base` under another name."""
    with pytest.raises(UserError, match=r"`run\.init_from` has no value; set it in the file or as key=value"):
        config.load(path)
    assert config.load(path, ["run.init_from=runs/a"]).run.init_from == "runs/a"


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_every_sweep_names_what_exists(path):
    sweep = loaded(path)
    assert sweep.checkpoints and all(protocols.load(title).tasks for title in sweep.protocols)
    assert perturb.parse(sweep.perturbations)


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_every_study_expands(path):
    assert plan.expand(loaded(path))


@pytest.mark.parametrize("preset", ["tiny", "la4vla_1b"])
def test_each_preset_has_every_paradigm(preset):
    names = {path.stem for path in RECIPES if path.parent.name == preset}
    assert {"base", "la", "vla", "la_vla", "mixpt", "finetune_metaworld"} <= names
