"""Why: a number whose source cannot be looked up is a rumour, and a link that leads nowhere costs its reader trust in
the others."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
FACTS = (ROOT / "docs/facts.md").read_text()
TEXTS = [
    path
    for folder in ("la4vla", "benchmarks", "configs", "tests", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml", ".md") and path != Path(__file__)
]


def test_every_fact_that_is_cited_is_on_the_page():
    cited = {
        (found, path.name) for path in TEXTS for found in re.findall(r"FACTS (\d+(?:\.\d+)+|B\d+)", path.read_text())
    }
    assert len(cited) > 50
    headings = set(re.findall(r"\*\*(\d+(?:\.\d+)+) ", FACTS)) | set(re.findall(r"\b(B\d+)", FACTS))
    assert {(number, name) for number, name in cited if number not in headings} == set()


def test_every_link_leads_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())]
    assert len(links) > 20
    assert [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_figures_are_what_their_script_makes():
    # A figure that is edited by hand, or left behind by a change of the sizes in it, says what is not so.
    made = runpy.run_path(str(ROOT / "docs/figures/make.py"))["figures"]()
    assert len(made) == 2
    assert {name: (ROOT / "docs/figures" / name).read_text() for name in made} == made
