"""Takes a run of the quickstart over into README: its table, docs/results/quickstart.json and docs/report.png.

    bash launch/quickstart.sh
    python docs/results/make.py runs/quickstart

The JSON is the run's report.json, byte for byte; the table is made of it; the image is the top of the run's report.html
and holds the JSON's hash, so that tests/test_docs.py can tell that all three are of one run. Needs playwright and
chromium, which `launch/test.sh` installs.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from la4vla.shell import exit_status
from la4vla.types import UserError

ROOT = Path(__file__).parents[2]
README, RESULTS, IMAGE = ROOT / "README.md", ROOT / "docs/results/quickstart.json", ROOT / "docs/report.png"
TRAINED, UNTRAINED = "eval/trained", "eval/untrained"  # folders of the two evaluations, as the report names them
HEAD = ["| task | trained | 95 % interval | untrained, same states |", "|---|---|---|---|"]
HASH = "sha256 of quickstart.json"  # key of the image's text
SIZE = {"width": 980, "height": 768}  # pixels of the image


def table(results: Mapping[str, Any]) -> list[str]:
    """The lines of README's table. results: what `la4vla eval report` wrote of the run."""
    rates = {item["evaluation"]: item["rates"] for item in results["evaluations"]}
    if not {TRAINED, UNTRAINED} <= rates.keys():
        raise UserError(
            f"the report has no {TRAINED} and {UNTRAINED}; give the folder that launch/quickstart.sh wrote."
        )
    lines = [*HEAD]
    for ours, theirs in zip(rates[TRAINED], rates[UNTRAINED], strict=True):
        if ours["level"] == "task":
            counts = [f"{rate['successes']} / {rate['n']}" for rate in (ours, theirs)]
            lines.append(f"| {ours['of'].removesuffix('-v3')} | {counts[0]} | {_interval(ours, ' - ')} | {counts[1]} |")
        if ours["level"] == "micro":
            mean = f"| **mean** | **{100 * ours['rate']:.1f} %** | {_interval(ours, ' - ')} "
            lines.append(mean + f"| {100 * theirs['rate']:.1f} % [{_interval(theirs, ', ')}] |")
    return lines


def lines_of_table(page: str) -> slice:
    """Where the table stands among the page's lines. Raises UserError where it does not."""
    lines = page.split("\n")
    if HEAD[0] not in lines:
        raise UserError(f"README has no line `{HEAD[0]}`; the table of results begins with it.")
    first = lines.index(HEAD[0])
    return slice(first, next(n for n in range(first, len(lines)) if not lines[n].startswith("|")))


def hash_of(results: Path) -> str:
    return hashlib.sha256(results.read_bytes()).hexdigest()


def hash_in(image: Path) -> str:
    """The hash that the image holds; empty for an image of another origin."""
    with Image.open(image) as opened:
        return str(opened.info.get(HASH, ""))


def _interval(rate: Mapping[str, float], between: str) -> str:
    return f"{100 * rate['low']:.1f}{between}{100 * rate['high']:.1f}"


def _screenshot(page: Path) -> bytes:
    """PNG of the top of a page. Raises UserError without a browser."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise UserError("no browser to draw the report with; install chromium.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--hide-scrollbars"])
        tab = opened.new_page(viewport=SIZE)  # pyright: ignore[reportArgumentType]
        tab.goto(page.resolve().as_uri())
        tab.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        return tab.screenshot()


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        raise UserError("say `python docs/results/make.py runs/quickstart`.")
    report = Path(arguments[0]) / "report.json"
    if not report.is_file():
        raise UserError(f"{report}: no such file; run launch/quickstart.sh, whose last part writes it.")
    lines = table(json.loads(report.read_text()))
    page = README.read_text()
    place, rows = lines_of_table(page), page.split("\n")
    rows[place] = lines
    shot = _screenshot(report.with_suffix(".html"))
    RESULTS.write_bytes(report.read_bytes())
    README.write_text("\n".join(rows))
    text = PngInfo()
    text.add_text(HASH, hash_of(RESULTS))
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").save(IMAGE, pnginfo=text, optimize=True)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
