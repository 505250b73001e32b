"""Why: a paraphrase that names its variant, loses the task or is no other wording measures something else."""

import numpy as np
import pytest

from benchmarks.perturb.paraphrase import paraphrase
from benchmarks.perturb.perturb import SEVERITIES, Variant, perturb
from la4vla.sim import libero, metaworld
from la4vla.types import Observation

PROMPTS = [*metaworld.prompts().values(), *libero.prompts().values()]
LEAKS = ("language", "perturb", "severity", "paraphrase", "level")


@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_prompt_gets_other_words_and_no_hint(severity):
    for prompt in PROMPTS:
        for seed in range(3):
            said = paraphrase(prompt, severity, np.random.default_rng(seed))
            assert said.lower() != prompt.lower()
            assert not any(word in said.lower() and word not in prompt.lower() for word in LEAKS)


def test_each_severity_says_it_in_its_way():
    said = [paraphrase("put the bowl on the plate", s, np.random.default_rng(0)) for s in SEVERITIES]
    assert "put the bowl on the plate" in said[0]
    assert "put" not in said[1] and said[1].endswith("the bowl on the plate")
    assert "bowl" not in said[2] and "plate" in said[2]
    assert "plate" not in said[3].replace("flat dish", "") and said[3] != said[4]


def test_only_the_instruction_changes_and_the_episode_decides_how():
    seen = Observation({"eye": np.zeros((8, 8, 3), np.uint8)}, np.arange(4.0), "push the puck to a goal")

    def asked(episode, step):
        return perturb(seen, Variant("language", 4), 0, "metaworld", "push-v3", episode, step)

    assert asked(0, 0).views is seen.views and asked(0, 0).state is seen.state
    assert asked(0, 0).instruction == asked(0, 40).instruction != seen.instruction
    assert len({asked(episode, 0).instruction for episode in range(10)}) > 3
