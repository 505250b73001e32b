"""Why: `la4vla gpla` is one command for hours of work; what is done is not done again, and what fails ends it."""

from dataclasses import replace

import pytest

from la4vla.gpla import jobs, rounds
from la4vla.gpla.__main__ import main
from la4vla.types import UserError
from tests.gpla.conftest import config_of, run_here


def test_what_is_finished_is_left_out_and_what_fails_ends_it(place, capfd):
    config = config_of(place, "jobs", "prefer.rounds=1")
    made = rounds.training(config)
    assert not jobs.finished(made)
    assert run_here(config) == 0 and jobs.finished(made)
    jobs.train("rounds", "nowhere.yaml", (), made, 1)
    assert f"rounds: {config.dir} is finished, left out" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"stages\.rounds\.lr is 0\.5"):
        jobs.finished(rounds.training(replace(config, prefer=replace(config.prefer, lr=0.5))))
    with pytest.raises(UserError, match="high ended with status 1; it says why above"):
        jobs.start("high", 1, "la4vla.no_such_module")
    assert "No module named la4vla.no_such_module" in capfd.readouterr().err


def test_a_command_that_names_no_config_of_gpla_is_refused(place):
    for words, sentence in (
        ([], "say which config"),
        (["rounds"], "say which config"),
        ([str(place / "high.yaml")], "is not a config of gpla"),
        (["rounds", str(place / "nowhere.yaml")], "no such config file"),
    ):
        with pytest.raises(UserError, match=sentence):
            main(words)
