"""Why: other languages and renamed objects are the paper's test of what a model has kept. A sentence that is missing,
the same, or that still names the object would measure nothing."""

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.perturb import perturb, wordings
from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.results import protocols
from la4vla.shell import exit_status
from la4vla.sim import metaworld
from la4vla.types import Observation, UserError

TASKS = protocols.load("metaworld/quickstart-v1").tasks
SAID = [metaworld.prompts()[task] for task in TASKS]
NOUNS = ("button", "door", "lock", "handle", "plate", "cabinet", "window")
SCRIPTS = {"zh": range(0x4E00, 0xA000), "hi": range(0x0900, 0x0980)}


@pytest.mark.parametrize("instruction", SAID)
def test_every_task_is_said_in_every_way(instruction):
    told = {how: wordings.reworded(instruction, how) for how in (*wordings.LANGUAGES, *wordings.RENAMED)}
    assert len({*told.values(), instruction}) == 7
    for language, letters in SCRIPTS.items():
        assert sum(ord(letter) in letters for letter in told[language]) > 0.5 * len(told[language].replace(" ", ""))
    for how in ("description", "association"):
        assert not any(noun in told[how].lower().split() for noun in NOUNS if noun in instruction.lower().split())


def test_only_the_instruction_changes():
    seen = Observation({"eye": np.zeros((8, 8, 3), np.uint8)}, np.arange(4.0), SAID[0])
    for variant in perturb.parse(["translation", "renamed:association"]):
        asked = perturb.perturb(seen, variant, 0, "metaworld", TASKS[0], 0, 5)
        assert asked.views is seen.views and asked.state is seen.state and asked.instruction != SAID[0]
        assert perturb.scene_change(variant, 0) is None


def test_wordings_are_named_or_numbered():
    assert [one.identity for one in perturb.parse(["translation:hi,es"])] == ["translation:3=hi", "translation:1=es"]
    assert perturb.parse(["renamed"]) == [Variant("renamed", number) for number in (1, 2, 3)]
    assert perturb.parse([one.title for one in perturb.parse(["renamed"])]) == perturb.parse(["renamed"])
    for text, says in {
        "translation:fr": "fr is no translation; use some of es, zh, hi",
        "renamed:": "is no renamed",
    }.items():
        with pytest.raises(UserError, match=says):
            perturb.parse([text])
    with pytest.raises(UserError, match="translation: would not reach"):
        perturb.check_delivered(perturb.parse(["translation"]), True, False)
    assert CLEAN not in perturb.parse(["renamed"])


def test_a_task_without_wordings_is_refused_before_an_episode_runs(tmp_path, capsys):
    from tests.hand_checkpoint import write_checkpoint

    folder = write_checkpoint(tmp_path / "run", metaworld.EMBODIMENT, ("corner4",))
    words = ["metaworld", "--checkpoint", str(folder), "--protocol", "metaworld/mt50-v1", "--tasks", "reach-v3"]
    words += ["--out", str(tmp_path / "eval"), "--perturb", "translation:es", "views=[corner4]"]
    assert exit_status(main, words) == 2
    assert "`Reach a goal position` has no other wordings" in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()
