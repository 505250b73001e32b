"""Self-contained HTML pages: opening one fetches nothing. Style and shared parts are in templates/.

Needs jinja2, which is an extra. The same values give the same bytes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from la4vla.types import UserError

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
DASH = "\u2013"


def environment(folder: Path) -> jinja2.Environment:
    """The templates of `folder`, which may extend and import those of page/templates. An unknown name is an error.

    Filters: `number` shows 1234.5 as 1,234.5, `percent` shows 0.5 as 50.0 %; both show None as a dash. Raises UserError
    without jinja2.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError('pages need jinja2: pip install "la4vla[construct]".') from error
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    made.filters["percent"] = lambda value: DASH if value is None else f"{100 * value:.1f} %"
    return made


def render(folder: Path, template: str, values: Mapping[str, Any]) -> str:
    """A page from `template` in `folder`. Raises UserError without jinja2."""
    return environment(folder).get_template(template).render(**values)


def write(path: Path, text: str) -> None:
    """Writes all of the text to `path`, or nothing. Raises UserError if it cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file or free the disk.") from error


def number(value: float | None, digits: int = 0) -> str:
    """`value` with thousands separators and so many digits after the point; None as a dash."""
    return DASH if value is None else f"{value:,.{digits}f}"


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
