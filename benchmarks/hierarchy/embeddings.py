"""GPLA's Figure 5: where a scorer's model puts motions and sentences, as t-SNE, with numbers for what the eye says.

A panel for each model. A cloud of points has one name from the model to the legend, so no colour can stand for another
cloud than it was drawn from. What the paper shows and is not at hand is left out by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from la4vla.page import page, style
from la4vla.page.style import INK
from la4vla.types import Deed, UserError

NUMBERS, FIGURE = "embeddings.json", "embeddings.svg"
PERPLEXITY = 30.0  # FACTS 2.1
NEIGHBOURS = 10
SENTENCES = "sentences"
PAPERS = {
    "clip": ("CLIP", "--scorer clip:FOLDER, a CLIP in transformers' layout"),
    "siglip": ("SigLIP 2", "--scorer siglip:FOLDER, a SigLIP in transformers' layout"),
    "grounding": ("grounding", "--scorer RUN, a run of learner grounding"),
}
"""The paper's three: kind of scorer -> its name, and what gives it."""
COLOURS = {SENTENCES: "#d97706"}
OTHER = "#2f81f7"


@runtime_checkable
class Embedder(Protocol):
    """A scorer whose scores are cosines of embeddings."""

    def embeddings(self, deeds: Sequence[Deed]) -> Mapping[str, np.ndarray]:
        """What is embedded -> float32 [deeds, D]: `sentences`, and `images`, `actions` or `images and actions`."""
        ...


@dataclass(frozen=True)
class EmbeddedClouds:
    """One model's points.

    name    of the model
    clouds  what is embedded -> float32 [N, D], `sentences` among them
    maps    the same as t-SNE, float32 [N, 2]
    gap     distance of the two clouds' means, points of length 1: 0 to 2
    mixed   share of a point's nearest neighbours that are of the other cloud; 0.5 where two of one size are one
    """

    name: str
    clouds: Mapping[str, np.ndarray]
    maps: Mapping[str, np.ndarray]
    gap: float
    mixed: float


def embedded(name: str, clouds: Mapping[str, np.ndarray], seed: int = 0) -> EmbeddedClouds:
    """clouds: two, as an Embedder gives them. Raises UserError for fewer points than t-SNE takes."""
    from sklearn.manifold import TSNE

    unit = {of: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for of, rows in clouds.items()}
    assert len(unit) == 2 and SENTENCES in unit
    joined_MD = np.concatenate(list(unit.values())).astype(np.float64)
    if len(joined_MD) <= 3 * PERPLEXITY:
        raise UserError(
            f"{len(joined_MD)} points are too few for t-SNE of perplexity {PERPLEXITY:.0f}; give more than "
            f"{3 * PERPLEXITY:.0f}, motions and sentences together."
        )
    map_M2 = TSNE(perplexity=PERPLEXITY, init="pca", random_state=seed).fit_transform(joined_MD)
    ends = np.cumsum([len(rows) for rows in unit.values()])[:-1]
    maps = dict(zip(unit, np.split(map_M2, ends), strict=True))
    return EmbeddedClouds(name, unit, maps, *gap_and_mixed(list(unit.values())))


def gap_and_mixed(clouds: Sequence[np.ndarray]) -> tuple[float, float]:
    """As EmbeddedClouds has them. clouds: two, float [N, D], points of length 1."""
    joined_MD = np.concatenate(clouds).astype(np.float64)
    of_M = np.repeat(np.arange(2), [len(rows) for rows in clouds])
    near_MM = joined_MD @ joined_MD.T
    np.fill_diagonal(near_MM, -np.inf)
    nearest_MK = np.argsort(-near_MM, axis=1, kind="stable")[:, :NEIGHBOURS]
    gap = float(np.linalg.norm(clouds[0].mean(axis=0) - clouds[1].mean(axis=0)))
    return gap, float((of_M[nearest_MK] != of_M[:, None]).mean())


def kind_of(spec: str) -> str:
    """What a scorer's name stands for in PAPERS; another kind, such as `action_only`, is of ours."""
    kind, colon, _ = spec.partition(":")
    return kind if colon else "grounding"


def of_scorer(spec: str, deeds: Sequence[Deed], device: str) -> EmbeddedClouds:
    """spec: of `la4vla.grounding.load.load_scorer`. A sentence that several deeds share is one point. Raises UserError
    for a scorer that embeds nothing."""
    # Imported only when asked for: it brings the classes of image and text towers.
    from la4vla.grounding.load import load_scorer

    kind, scorer = kind_of(spec), load_scorer(spec, device)
    if not isinstance(scorer, Embedder):
        raise UserError(f"{spec} embeds nothing; name a grounding run, clip:DIR or siglip:DIR.")
    firsts = {deed.sentence: place for place, deed in reversed(list(enumerate(deeds)))}
    found = dict(scorer.embeddings(deeds))
    found[SENTENCES] = found[SENTENCES][sorted(firsts.values())]
    return embedded(PAPERS[kind][0] if kind in PAPERS else kind, found)


def left_out(kinds: Sequence[str]) -> dict[str, str]:
    """The paper's models that are not among these kinds of scorers -> what to give for them."""
    return {name: how for kind, (name, how) in PAPERS.items() if kind not in kinds}


def figure(models: Sequence[EmbeddedClouds], missing: Mapping[str, str]) -> bytes:
    """SVG. missing: of `left_out`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**style.style(9), "svg.hashsalt": "embeddings"}):
        drawn = Figure(figsize=(3.6 * len(models), 3.9), layout="constrained")
        panels = drawn.subplots(1, len(models), squeeze=False)[0]
        for panel, model in zip(panels, models, strict=True):
            for of, map_N2 in model.maps.items():
                panel.scatter(*map_N2.T, s=7, linewidths=0, color=COLOURS.get(of, OTHER), label=of)
            panel.set_title(f"{model.name}: mixed {model.mixed:.2f}, gap {model.gap:.2f}", loc="left", fontsize=9)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.legend(frameon=False, fontsize=8, labelcolor=INK, markerscale=2, loc="upper right")
        if missing:
            panels[0].set_xlabel(f"left out, no weights at hand: {', '.join(missing)}", loc="left", fontsize=8)
        return style.rendered(drawn)


def write(models: Sequence[EmbeddedClouds], kinds: Sequence[str], out: Path) -> dict[str, Any]:
    """Writes embeddings.svg and embeddings.json, and returns what the latter holds. kinds: of the models' scorers."""
    missing = left_out(kinds)
    numbers = {
        "models": {
            one.name: {"gap": one.gap, "mixed": one.mixed, "points": {of: len(rows) for of, rows in one.clouds.items()}}
            for one in models
        },
        "left_out": missing,
        "perplexity": PERPLEXITY,
    }
    page.write(out / NUMBERS, json.dumps(numbers, indent=1) + "\n")
    (out / FIGURE).write_bytes(figure(models, missing))
    return numbers
