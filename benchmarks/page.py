"""What our HTML pages share: templates that escape, one style sheet inside the page, nothing fetched."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """Templates of this package. Filter `percent`: a share in [0, 1] -> `12.3`, `-` for NaN."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda value: "-" if math.isnan(value) else f"{100 * value:.1f}"
    return made


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
