"""The jinja2 environment of reports and sweeps: `la4vla.page.page`'s, with the templates and style sheet of this
folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from la4vla.page import page

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """The environment of this folder's templates. Its filter `percent`: a share in [0, 1] -> `12.3`, `-` for NaN."""
    made = page.environment(TEMPLATES)
    made.filters["percent"] = lambda value: "-" if math.isnan(value) else f"{100 * value:.1f}"
    return made
