"""The README's two figures: `python docs/figures/make.py` writes pipeline.svg and rows.svg beside this file.

Each stands on a light card of its own, so that it reads the same on a light and on a dark page. Every number in them is
that of the preset la4vla_1b (la4vla/model/presets.py); a test compares the files with what this script makes.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from la4vla.model.presets import LA4VLA_1B

HERE = Path(__file__).parent
WIDTH = 1000
INK, FAINT, CARD, LINE = "#1f2933", "#5b6672", "#fbfcfd", "#c6ced6"
WORD, IMAGE, STATE, PAD, ACTION = "#cfe3f7", "#e4d3f5", "#ffe3b8", "#eceff2", "#cdebd3"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def text(
    x: float, y: float, words: str, size: int = 15, color: str = INK, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str, dashed: bool = False, line: str = LINE) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" '
        f'stroke="{line}" stroke-width="1.2"{dash}/>'
    )


def labelled(x: float, y: float, width: float, height: float, fill: str, words: str, size: int = 14) -> str:
    return box(x, y, width, height, fill) + text(x + width / 2, y + height / 2 + 5, words, size, anchor="middle")


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{FAINT}" stroke-width="1.6" '
        'marker-end="url(#tip)"/>'
    )


def figure(height: int, title: str, parts: Iterable[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img" font-family="{FONT}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/></marker>'
            '<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            f'<rect width="7" height="7" fill="{PAD}"/><line x1="0" y1="0" x2="0" y2="7" stroke="{LINE}" '
            'stroke-width="2"/></pattern></defs>',
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10" fill="{CARD}" stroke="{LINE}"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


STEPS = (
    ("demonstrations", PAD, "", ("LeRobot, HDF5,", ".npz, or recorded", "in a simulator")),
    ("clips", WORD, "la4vla construct", ("cut, labelled,", "scored, reviewed")),
    ("shards", WORD, "", ("la/  vla/  task/", "WebDataset tars")),
    ("pretrain", ACTION, "la4vla train", ("la, vla, la_vla", "or mixpt")),
    ("finetune", ACTION, "la4vla train", ("from its weights,", "on the task's data")),
    ("evaluate", STATE, "la4vla eval", ("success rates", "with intervals")),
    ("probe", STATE, "la4vla probe", ("words or image:", "which decides?")),
)
"""Name, colour, command (it stands above the box it begins at), what is in it."""


def pipeline() -> str:
    width, gap, left, top = 122, 18, 19, 60
    parts = []
    for index, (name, fill, command, lines) in enumerate(STEPS):
        x = left + index * (width + gap)
        parts.append(box(x, top, width, 96, fill))
        parts.append(text(x + width / 2, top + 26, name, 13, anchor="middle", weight=700))
        parts += [text(x + width / 2, top + 50 + 18 * row, line, 13, anchor="middle") for row, line in enumerate(lines)]
        if command:
            parts.append(text(x + width / 2, top - 16, command, 14, FAINT, anchor="middle"))
        if index:
            parts.append(arrow(x - gap + 2, top + 48, x - 3, top + 48))
    parts.append(
        text(
            left,
            top + 124,
            "Each step leaves a folder on disk; the same command again goes on where it stopped.",
            14,
            FAINT,
        )
    )
    return figure(
        200, "Demonstrations become clips and shards; a policy is pretrained, finetuned, evaluated, probed.", parts
    )


def row_of_la(top: float) -> list[str]:
    parts = [
        text(24, top + 20, "la", 20, weight=700),
        text(54, top + 20, "no image token exists in the row, and the vision tower is never called", 15, FAINT),
        box(300, top + 38, 150, 34, CARD, dashed=True),
        text(375, top + 60, "vision tower", 14, FAINT, anchor="middle"),
        text(464, top + 60, "not called", 14, FAINT),
    ]
    x = 24.0
    for word in ("move", "the", "empty", "gripper", "upward"):
        width = 24 + 8.6 * len(word)
        parts.append(labelled(x, top + 88, width, 34, WORD, word))
        x += width + 5
    parts.append(labelled(x, top + 88, 120, 34, "url(#hatch)", "padding"))
    parts.append(labelled(860, top + 88, 116, 34, STATE, "state"))
    return parts


def row_of_vla(top: float) -> list[str]:
    tokens = LA4VLA_1B.image_tokens
    parts = [
        text(24, top + 20, "vla", 20, weight=700),
        text(62, top + 20, "the same clip: each view that exists becomes tokens before the same words", 15, FAINT),
        labelled(24, top + 38, 106, 34, PAD, "view 1"),
        labelled(24, top + 76, 106, 34, PAD, "view 2"),
        box(180, top + 38, 150, 72, IMAGE),
        text(255, top + 68, "vision tower", 15, anchor="middle"),
        text(255, top + 90, f"{LA4VLA_1B.image_size} x {LA4VLA_1B.image_size} px", 13, FAINT, anchor="middle"),
        arrow(132, top + 55, 177, top + 62),
        arrow(132, top + 93, 177, top + 86),
        arrow(232, top + 112, 182, top + 133),
        arrow(280, top + 112, 470, top + 133),
    ]
    x = 24.0
    for words, width, fill in (
        ("Image-1:", 76, WORD),
        (f"{tokens} image tokens", 166, IMAGE),
        ("Image-2:", 76, WORD),
        (f"{tokens} image tokens", 166, IMAGE),
        ("move the empty gripper upward", 240, WORD),
    ):
        parts.append(labelled(x, top + 136, width, 34, fill, words))
        x += width + 5
    parts.append(labelled(x, top + 136, 72, 34, "url(#hatch)", "padding"))
    parts.append(labelled(860, top + 136, 116, 34, STATE, "state"))
    return parts


def what_follows(top: float) -> list[str]:
    """Language model, head and chunk. Of the chunk's cells, fewer than there are, those of a mask stand hatched."""
    parts = [
        box(24, top, 190, 76, WORD),
        text(119, top + 31, "language model", 15, anchor="middle", weight=700),
        text(119, top + 54, "causal attention", 13, FAINT, anchor="middle"),
        arrow(217, top + 38, 262, top + 38),
        box(265, top, 260, 76, ACTION),
        text(395, top + 31, "flow head", 15, anchor="middle", weight=700),
        text(395, top + 54, "reads tokens and state, no padding", 13, FAINT, anchor="middle"),
        arrow(528, top + 38, 573, top + 38),
    ]
    for step in range(10):
        for dim in range(5):
            real = step < 7 and dim < 3
            parts.append(
                f'<rect x="{577 + 17 * step}" y="{top - 4 + 17 * dim:g}" width="15" height="15" rx="2" '
                f'fill="{"#7cc48b" if real else "url(#hatch)"}"/>'
            )
    parts += [
        text(760, top + 10, "the next actions,", 14),
        text(760, top + 30, f"{LA4VLA_1B.horizon} steps x {LA4VLA_1B.action_dim} dims", 14),
        text(760, top + 54, "hatched: in no loss (steps past", 13, FAINT),
        text(760, top + 72, "the clip's end, absent dims)", 13, FAINT),
    ]
    return parts


def rows() -> str:
    parts = [*row_of_la(16), *row_of_vla(172), *what_follows(384)]
    parts.append(f'<line x1="24" y1="156" x2="976" y2="156" stroke="{LINE}"/>')
    parts.append(f'<line x1="24" y1="362" x2="976" y2="362" stroke="{LINE}"/>')
    return figure(484, "A row of kind la holds words and a state; a row of kind vla holds image tokens as well.", parts)


def main() -> None:
    for name, content in figures().items():
        (HERE / name).write_text(content)


def figures() -> dict[str, str]:
    """File name -> SVG."""
    return {"pipeline.svg": pipeline(), "rows.svg": rows()}


if __name__ == "__main__":
    main()
