"""Why: runs resume and split over ranks exactly only if every draw is named by integers, not by what came before it."""

import subprocess
import sys

import numpy as np
import torch

from la4vla.rng import RngUse, generator, torch_generator


def test_a_name_gives_the_same_numbers_in_another_process():
    code = "from la4vla.rng import *; print(generator(3, RngUse.FLOW, 'la', 17).integers(2**62))"
    outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(outside) == generator(3, RngUse.FLOW, "la", 17).integers(2**62)


def test_every_coordinate_matters():
    draws = [
        generator(*name).random()
        for name in [
            (0, RngUse.FLOW, "la", 1),
            (1, RngUse.FLOW, "la", 1),
            (0, RngUse.AUGMENT, "la", 1),
            (0, RngUse.FLOW, "vla", 1),
            (0, RngUse.FLOW, "la", 2),
        ]
    ]
    assert len(set(draws)) == len(draws)


def test_the_numbers_are_those_that_runs_were_made_with():
    """A use that is renumbered, or another bit generator, would resume a run with other samples and call it exact."""
    drawn = {use.name: int(generator(0, use, "source", 1).integers(2**31)) for use in RngUse}
    assert drawn == {
        "SHARDS": 1554276113,
        "SAMPLES": 2064963514,
        "FLOW": 228331569,
        "AUGMENT": 1624479430,
        "INIT": 67160497,
        "DROPOUT": 1338126382,
        "SERVE": 1255030484,
        "RECORD": 1880471894,
        "WORDING": 160543638,
        "EXAMPLES": 488600047,
        "REVIEW": 1454753339,
        "PERTURB": 799022080,
        "BOOTSTRAP": 1571892438,
        "CASES": 1790100887,
        "RESAMPLE": 654016074,
        "VALIDATE": 1666138651,
        "WRITE": 507302094,
        "TEXTS": 609161602,
        "PAIRS": 70559748,
        "CONTRAST": 605617559,
        "CORRUPT": 1447421652,
    }
    assert int(torch.randint(2**31, (1,), generator=torch_generator(0, RngUse.INIT, 1))) == 48684875


def test_neighbours_are_uncorrelated():
    table = np.stack([generator(0, RngUse.FLOW, "la", n).standard_normal(256) for n in range(64)])
    off_diagonal = np.corrcoef(table)[~np.eye(64, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.35


def test_torch_draws_follow_the_name():
    first, again, other = (torch.rand(4, generator=torch_generator(0, RngUse.INIT, n)) for n in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
