import pytest

from la4vla.construct.__main__ import run
from tests.construct.recorded import recorded


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of conversations about four recorded episodes, actions as decimals."""
    config = recorded(tmp_path_factory.mktemp("texts"))
    config.texts.held_out_scenes = config.texts.held_out_wordings = 0.0
    run(config, "texts")
    return f"{config.out_dir}/texts"
