"""Why: the command is the first thing a newcomer meets; it must answer at once and turn bad input into one sentence."""

import contextlib
import os
import subprocess
import sys

import pytest

from la4vla import cli
from tests.fixtures import write_shards


def test_help_names_every_command_and_imports_nothing_heavy():
    script = (
        "import sys\nfrom la4vla import cli\nassert cli.main(['--help']) == 0\n"
        "assert not {'torch', 'numpy', 'omegaconf'} & set(sys.modules), 'help must not wait for torch'"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    for command in cli.COMMANDS:
        assert f"la4vla {command}" in shown


@pytest.mark.parametrize("words", [["construct"], ["config"], ["train"], ["data"], ["data", "verify"], ["eval"]])
def test_every_command_helps(words, capsys):
    with contextlib.suppress(SystemExit):  # argparse's own way
        assert cli.main([*words, "--help"]) == 0
    said = capsys.readouterr()
    assert words[0] in said.out or "metaworld" in said.out
    assert not said.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(unbuffered):
    """It has gone long before the first word is written, as `head` has before the last."""
    command = f"{sys.executable} -m la4vla.cli config configs/tiny/mixpt.yaml | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "error: `trian` is not a command; `la4vla --help` lists them."),
        (["config", "configs/nowhere.yaml"], "no such config file"),
        (["train", "configs/nowhere.yaml"], "no such config file"),
        (["construct", "configs/nowhere.yaml"], "no such config file"),
        (["data", "verify"], "la4vla data verify DIR"),
        (["data", "stats", "one", "tiny", "two"], "data stats DIR [PRESET]"),
        (["data", "preview", "one", "one.html", "two"], "data preview DIR [OUT.html]"),
        (["data", "stats", "nowhere"], "nowhere"),
        (["eval", "report", "nowhere"], "no such folder"),
        (["eval", "metaworld", "--expert", "--protocol", "x", "--out", "nowhere"], "protocol `x` does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words, sentence, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and "Traceback" not in captured.err and captured.err.count("\n") == 1


def test_config_and_data_reach_their_rooms(tmp_path, capsys):
    assert cli.main(["config", "configs/tiny/base.yaml", "run.seed=7"]) == 0
    assert "seed: 7" in capsys.readouterr().out
    write_shards(tmp_path / "la")
    assert cli.main(["data", "verify", str(tmp_path / "la")]) == 0
    assert cli.main(["data", "stats", str(tmp_path / "la"), "tiny"]) == 0
    assert "all as the index says" in capsys.readouterr().out
    shard = next((tmp_path / "la").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:2000])
    assert cli.main(["data", "verify", str(tmp_path / "la")]) == 1
    assert shard.name in capsys.readouterr().out


def test_verify_looks_into_every_folder_it_is_given(tmp_path, capsys):
    for name in ("whole", "torn"):
        write_shards(tmp_path / name)
    folders = [str(tmp_path / "whole"), str(tmp_path / "torn")]
    assert cli.main(["data", "verify", *folders]) == 0
    assert capsys.readouterr().out.count("all as the index says") == 2
    shard = next((tmp_path / "torn").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:2000])
    assert cli.main(["data", "verify", *folders]) == 1
    assert "all as the index says" in (said := capsys.readouterr().out) and shard.name in said
