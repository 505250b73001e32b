"""Why: a number whose source cannot be looked up is a rumour, and a link that leads nowhere costs its reader trust in
the others."""

import re
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
