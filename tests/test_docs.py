"""Why: a number whose source cannot be looked up is a rumour, and a link that leads nowhere costs its reader trust in
the others."""

import ast
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


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_every_anchor_is_a_heading():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    links = [
        (page, target, anchor)
        for page in pages
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    ]
    assert len(links) > 40
    wrong = [
        f"{page.name}: {target}#{anchor}"
        for page, target, anchor in links
        if anchor not in headings(page.parent / target if target else page)
    ]
    assert not wrong


def test_every_page_is_in_the_index():
    # A page that nothing leads to is read by nobody.
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page}" not in index} == set()


def messages() -> list[str]:
    """Every string of the code, with `…` for what an f-string fills in."""
    texts = []
    for path in [*(ROOT / "la4vla").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_every_error_that_is_explained_can_occur():
    # Whoever meets an error searches the page for its words; an error of an older version is found by nobody.
    page = (ROOT / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| (?:``(.+?)``|`(.+?)`) \|", page, re.MULTILINE)
    quoted = [(double or single).strip() for double, single in rows]
    assert len(quoted) > 40
    known = messages()
    theirs = {"torch.OutOfMemoryError"}
    patterns = {text: ".*".join(map(re.escape, text.split("…"))) for text in quoted if text not in theirs}
    assert [text for text, pattern in patterns.items() if not any(re.search(pattern, one) for one in known)] == []


def test_the_words_of_the_code_are_in_the_glossary():
    said = re.search(r'"Glossary":(.*?)\.\n', (ROOT / "la4vla/types.py").read_text(), re.DOTALL)
    assert said
    words = {" ".join(word.split()) for word in said[1].split(",")}
    glossary = (ROOT / "docs/README.md").read_text().partition("## Glossary")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^\| ([a-z-]+) \| .+ \|$", glossary, re.MULTILINE))
    assert len(words) > 10 and words <= explained
