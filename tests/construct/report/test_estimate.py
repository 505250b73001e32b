"""Why: a lab decides by this number whether it can afford the dataset; it must be the paper's where the paper's
settings are used, and it must be had before a key, an endpoint or money is."""

import pytest

from la4vla.config import VlmConfig
from la4vla.construct.__main__ import main
from la4vla.construct.propose.prompt import episode_text, shown_frames, system_text
from la4vla.construct.report.estimate import PAPER_OUTPUT_TOKENS, CostEstimate, input_tokens
from tests.construct.recorded import recorded

PAPER_INPUT_TOKENS = 4633  # an episode of 287.83 frames at 15 Hz (FACTS 1.3.4, 1.3.6)


def paper_tokens(views, size, config):
    hints = [f"- {second}.20s: static" for second in range(6)]
    text = system_text() + episode_text("Put the cup on the plate", 19.2, views, hints)
    return input_tokens(text, len(shown_frames(288, 15.0, 1, config.fps)), [size] * len(views), config)


@pytest.mark.parametrize(("views", "size"), [(["left", "wrist"], (480, 640)), (["left", "right", "wrist"], (180, 320))])
def test_an_episode_of_the_paper_costs_what_the_paper_says(views, size):
    assert paper_tokens(views, size, VlmConfig()) == pytest.approx(PAPER_INPUT_TOKENS, rel=0.15)


@pytest.mark.parametrize("change", [{"fps": 1.0}, {"width": 640, "height": 480}, {"frames_as": "images"}])
def test_other_settings_would_not_have(change):
    assert paper_tokens(["left", "wrist"], (480, 640), VlmConfig(**change)) != pytest.approx(4633, rel=0.25)


def test_money_and_hours():
    text = CostEstimate(9560, 440, 9560 * 78, 9560 * 4633).text(
        VlmConfig(input_price=0.2, output_price=1.6, requests_per_minute=300)
    )
    assert "9560 to ask" in text
    assert "440 done" in text
    assert "78.0 an episode" in text
    assert "4.633 K an episode, 44.29 M in all" in text
    assert "0.354 K an episode, 3.38 M in all" in text
    assert f"{44.29 * 0.2 + 9560 * PAPER_OUTPUT_TOKENS / 1e6 * 1.6:.2f}," in text
    assert "0.53 h" in text


def write_yaml(tmp_path):
    recorded(tmp_path)
    path = tmp_path / "construct.yaml"
    path.write_text(
        f"schema: construct\nproposer: vlm\nout_dir: {tmp_path}/out\nread: {{path: {tmp_path}/episodes}}\n"
        "record: {tasks: [pick-place-v3], episodes: 4}\nshards: 2\n"
    )
    return str(path)


def test_a_dry_run_needs_no_endpoint_and_proposes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["propose", write_yaml(tmp_path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "episodes       4 to ask qwen3-vl-plus about, 0 done" in text
    assert "frames shown   4.0 an episode" in text
    assert "price          unknown" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"episodes.jsonl", "keyframes.jsonl"}


@pytest.mark.parametrize(
    ("words", "cure"), [(["propose", "proposer=kinematic"], "proposer=vlm"), (["filter"], "propose")]
)
def test_a_dry_run_of_something_free_is_an_error(tmp_path, words, cure):
    step, *overrides = words
    with pytest.raises(ValueError, match=cure):
        main([step, write_yaml(tmp_path), *overrides, "--dry-run"])
