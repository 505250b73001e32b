"""Why: actions that count from the chunk's first state, or from the action before, have other values in every chunk;
their statistics must be those of the chunks that are trained on, and a served chunk must come back as absolute
poses."""

import re

import numpy as np
import pytest

from la4vla.cli import main
from la4vla.data.delta import WINDOWED, delta_action
from la4vla.data.reader import Reader
from la4vla.data.setup import prepare
from la4vla.data.shards.index import read_stats
from la4vla.types import UserError
from tests.fixtures import ARM, POSE, SPEC, encode, make_clip, train_config, write_shards


@pytest.fixture
def folder(tmp_path):
    clips = [make_clip(number, 4 + number, embodiment=POSE) for number in range(8)]
    write_shards(tmp_path / "pose", clips, 4, embodiment=POSE)
    return tmp_path / "pose"


def by_hand(form: str, clip, start: int) -> np.ndarray:
    """Positions and angles of one chunk, the second ones wrapped."""
    action, state = clip.action[start : start + SPEC.horizon, :6].astype(float), clip.state[start, :6].astype(float)
    before = np.concatenate([state[None], action[:-1]]) if form == "delta_to_previous_action" else state
    delta = action - before
    delta[:, 3:] = (delta[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return delta


def test_statistics_are_those_of_the_chunks(folder, capsys):
    assert main(["data", "chunk-stats", str(folder), "--horizon", str(SPEC.horizon)]) == 0
    assert "delta_to_first_state/6, delta_to_previous_action/6 added to stats.json" in capsys.readouterr().out
    stats = read_stats(folder)
    clips = [make_clip(number, 4 + number, embodiment=POSE) for number in range(8)]
    for form in WINDOWED:
        rows = np.concatenate([by_hand(form, clip, start) for clip in clips for start in range(len(clip))])
        found = stats.action(f"{form}/{SPEC.horizon}")
        assert found.count == len(rows)
        np.testing.assert_allclose(np.array(found.q01)[:6], np.quantile(rows, 0.01, 0), atol=1e-5)
        np.testing.assert_allclose(np.array(found.max)[:6], rows.max(0), atol=1e-5)


@pytest.mark.parametrize("form", WINDOWED)
def test_a_run_reads_them_and_a_chunk_comes_back(folder, form):
    config = train_config({"pose": (folder, "la")}, steps=2)
    config.data.action, config.data.normalization = form, "min_max"
    with pytest.raises(UserError, match=re.escape(f"chunk-stats FOLDER --horizon {SPEC.horizon}")):
        prepare(config, SPEC, encode)
    main(["data", "chunk-stats", str(folder), "--horizon", str(SPEC.horizon)])
    setup = prepare(config, SPEC, encode)
    chain, clips = setup.only_robot.chain, {f"clip-{n:05d}": make_clip(n, 4 + n, embodiment=POSE) for n in range(8)}
    with Reader(config, setup, 0, 1) as reader:
        batch = next(iter(reader.steps("first", 0))).batches[0]
    for row, key in enumerate(batch.keys):
        _, name, start = key.split("/")
        clip, first = clips[name], int(start)
        counted = int(batch.action_mask_BTA[row].any(-1).sum())
        back = chain.inverse(batch.actions_BTA[row].numpy(), clip.state[first])[:counted]
        np.testing.assert_allclose(back, clip.action[first : first + counted], atol=2e-5)


def test_what_has_no_such_form_is_refused(folder, tmp_path, capsys):
    write_shards(tmp_path / "arm", 8)
    assert main(["data", "chunk-stats", str(tmp_path / "arm"), "--horizon", "6"]) == 2
    assert "the actions of test_arm are not absolute" in capsys.readouterr().err
    assert main(["data", "chunk-stats", str(folder), "--horizon", "0"]) == 2
    assert "--horizon 0: must be at least 1" in capsys.readouterr().err
    assert delta_action(ARM, WINDOWED[0]) is None
