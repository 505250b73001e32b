"""Why: people choose their GPUs by the README's table before anything has run. So its numbers are those of the command
beside it, and what the command calls memory is what an engine really holds."""

from pathlib import Path

import pytest

from benchmarks.speed import recipes
from la4vla.config import MODULE_GROUPS, LoraConfig, StageConfig, TrainConfig
from la4vla.model import freeze, lora
from la4vla.model.policy import build_policy
from la4vla.model.presets import LA4VLA_1B, TINY
from la4vla.shell import exit_status
from la4vla.train import dist
from la4vla.train.engines.plain import PlainEngine
from la4vla.train.learners import adapting
from la4vla.train.optim import Rules

README = Path(__file__).parents[3] / "README.md"


def computed(table: str) -> list[list[str]]:
    """The cells of every line but the last one, which holds times that were measured."""
    return [[cell.strip() for cell in line.strip("| ").split("|")[:8]] for line in table.splitlines()]


def test_the_readmes_table_is_the_commands(capsys):
    assert recipes.main([]) == 0
    printed = capsys.readouterr().out.strip()
    lines = README.read_text().splitlines()
    begin = lines.index(printed.splitlines()[0])
    assert computed("\n".join(lines[begin : begin + len(printed.splitlines())])) == computed(printed)
    assert not lines[begin + len(printed.splitlines())].startswith("|")


def test_parameters_are_those_of_the_release():
    groups = recipes.parameters(LA4VLA_1B, "flatten", LoraConfig())
    assert sum(groups.values()) == 775_198_640 and groups["head"] == 122_029_360  # FACTS 4.1


@pytest.mark.parametrize(
    ("train", "averaged"),
    [(("head",), False), (("head",), True), (MODULE_GROUPS, False), (("lora", "head"), False), (("lora",), True)],
)
def test_memory_is_what_the_plain_engine_holds(train, averaged):
    config = TrainConfig(stages={"only": StageConfig(mixture={}, steps=1, train=list(train))})
    config.optim.ema_decay = 0.9 if averaged else 0.0
    policy, adapters, frozen = build_policy(config.model, seed=0), LoraConfig(), recipes.FP32
    if "lora" in train:
        adapters, frozen = LoraConfig(rank=4, targets=["vision", "llm"]), recipes.BF16
        lora.inject(policy, adapters, seed=0)
    freeze.set_trainable(policy, train)
    if "lora" in train:
        adapting.hold_frozen_in_bf16(policy, ())
    engine = PlainEngine(policy, config, Rules(0.0, {}), dist.connect())
    weights = list(engine.module.parameters())
    held = [*weights, *(weight.grad for weight in weights if weight.grad is not None)]
    held += [moment for _, *moments in engine.moments() for moment in moments]
    held += [average for _, average in engine.averages()]
    groups = recipes.parameters(TINY, config.model.readout, adapters)
    trained = sum(groups[group] for group in train)
    cost = recipes.Cost("tiny", "only", sum(groups.values()), trained, frozen, averaged, 1, (), 0.0)
    assert sum(tensor.nbytes for tensor in held) == pytest.approx(1e9 * cost.gigabytes(1), abs=1)


def test_elsewhere_the_command_says_where_to_start_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_status(recipes.main, []) == 2
    assert "holds configs/" in capsys.readouterr().err
