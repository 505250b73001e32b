"""Why: a model that writes can be no better than the texts it learns. Demonstrations told as text and played in the
real simulator must succeed, or merging, codec or playing lose what matters; and the command must say so when they do."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.rollouts import ceiling
from la4vla.construct import __main__ as construct
from la4vla.types import UserError

TASKS = ["plate-slide-v3", "window-open-v3"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ceiling")
    path = folder / "construct.yaml"
    path.write_text(
        f"schema: construct\nout_dir: {folder}\nread: {{path: {folder}/episodes}}\npropose: {{min_clip_frames: 8}}\n"
        f"record: {{tasks: [{', '.join(TASKS)}], episodes: 2, image_size: 32, frame_stride: 3, fast: true}}\n"
    )
    return path


@pytest.mark.sim
@pytest.mark.slow
def test_every_codec_replays_what_the_expert_commanded(config, capsys):
    assert construct.main(["filter", str(config)]) == 0
    capsys.readouterr()
    out = config.with_name("ceiling.json")
    assert main(["ceiling", str(config), "--episodes", "2", "--json", str(out)]) == 0
    rows = {row["condition"]: row for row in json.loads(out.read_text())}
    assert rows[ceiling.COMMANDS]["tasks"] == {task: [True, True] for task in TASKS}
    for codec in ("decimals", "sentence", "tokens", "fast"):
        successes = sum(sum(rows[f"{codec}, commanded"]["tasks"][task]) for task in TASKS)
        assert successes >= 3, f"{codec}: {successes} of 4 replays succeed"
    assert rows["decimals, commanded"]["rows"] == rows["sentence, commanded"]["rows"]
    # The plate is pushed: where the hand was stopped, reached motion says less than was commanded.
    assert rows["decimals, reached"]["tasks"]["plate-slide-v3"] == [False, False]
    assert "decimals, reached: below 80 % of the expert's" in capsys.readouterr().out


def test_what_cannot_be_played_again_is_refused(config):
    with pytest.raises(UserError, match="since only they can be played again"):
        main(["ceiling", str(config), "read.format=npz", "read.robot=metaworld_sawyer"])
