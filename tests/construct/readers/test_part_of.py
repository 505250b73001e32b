"""Why: what is held out is the rest of a dataset, and an episode in both parts makes every number about it
worthless."""

from pathlib import Path

import pytest

from la4vla.config import ConstructConfig, ReadConfig
from la4vla.construct.readers import open_dataset
from la4vla.types import UserError

TINY = Path(__file__).parent / "language_table/language_table/0.0.1"


def keys(**settings):
    beside = {"views": {"front": "observation/rgb"}, "state": ["observation/effector_translation"]}
    read = ReadConfig(format="rlds", path=str(TINY), robot="language_table", **beside, **settings)
    return list(open_dataset(ConstructConfig(out_dir="out", read=read)).keys)


def test_two_parts_of_a_dataset_share_no_episode():
    whole = keys()
    assert keys(max_episodes=2) == whole[:2] and keys(skip_episodes=2) == whole[2:]
    assert keys(skip_episodes=1, max_episodes=1) == whole[1:2]
    with pytest.raises(UserError, match=r"read\.skip_episodes is 3 of 3 episodes"):
        keys(skip_episodes=3)
