"""How likely a model finds actions before it is trained on any: VLM2VLA's Figure 3.

The same motions of a text folder as answers to the same questions in several forms: with the codecs `decimals` and
`sentence` in words, and with `tokens`, digits as rare tokens. Which tokens are rare is said by a rule (those that the
tokenizer's makers kept free, then the merges learned last) or measured: those that the model gives the least
probability on average, over every token of its own prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.writing.models import open_model, read_rows, writer
from la4vla import __version__
from la4vla.action_text.action_text import ActionText
from la4vla.action_text.motion import Motion
from la4vla.data.shards.index import read_index
from la4vla.data.shards.texts import read_about
from la4vla.page import page, style
from la4vla.page.style import INK
from la4vla.questions.wordings import ask
from la4vla.types import TextRow, Turn, UserError
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rare_tokens import with_tokens
from la4vla.vlm.rows import ChatEncoder, EncodedText
from la4vla.vlm.scores import token_log_probs

NUMBERS, FIGURE = "likelihood.json", "likelihood.svg"
FORMS = ("decimals", "sentence", "tokens")
BY_RULE, MEASURED = "tokens (by rule)", "tokens (measured)"
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
BAR, DOT = "#2f81f7", "#d97706"


@dataclass(frozen=True)
class LikelihoodRequest:
    """What is measured.

    model    a preset, folder, hub id, checkpoint or run of a model that writes
    texts    folder of conversations with questions of type `actions`
    out      folder of likelihood.json and likelihood.svg
    rows     motions at most
    prompts  of them, those whose questions the rare tokens are measured on; 0: the rule alone
    device   of the model; empty: the best there is
    """

    model: str
    texts: Path
    out: Path
    rows: int = 200
    prompts: int = 32
    device: str = ""


@dataclass(frozen=True)
class FormScores:
    """Answers in one form.

    totals  log-probability of each whole answer
    counts  tokens of each, the end of the turn among them
    rare    token ids that stand for 0 to 9; empty where digits are digits
    """

    totals: tuple[float, ...]
    counts: tuple[int, ...]
    rare: tuple[int, ...] = ()

    @property
    def a_token(self) -> np.ndarray:
        """Mean over its tokens, one an answer."""
        return np.array(self.totals) / np.array(self.counts)


def measure(request: LikelihoodRequest) -> dict[str, Any]:
    """Writes likelihood.json and likelihood.svg, and returns what the JSON holds. Raises UserError for a model that
    writes nothing and for a folder without action texts."""
    vlm, encoder = writer(model := open_model(request.model, request.device))
    motions = motions_of(request.texts, request.rows)
    scores = score_forms(vlm, encoder, motions, request.prompts)
    numbers = {
        "la4vla": __version__,
        "model": {"place": model.place, "identity": model.identity, "step": model.step},
        "texts": str(request.texts),
        "rows": len(motions),
        "prompts": min(request.prompts, len(motions)),
        "forms": {name: _described(one, encoder) for name, one in scores.items()},
        "answers": {name: asdict(one) for name, one in scores.items()},
    }
    page.write(request.out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    request.out.joinpath(FIGURE).write_bytes(figure(scores))
    return numbers


@dataclass(frozen=True)
class AskedMotion:
    """A motion of a text folder.

    row     that it stands in
    motion  what its answer says
    forms   the codec of each form for its robot
    """

    row: TextRow
    motion: Motion
    forms: Mapping[str, ActionText]

    def told(self, form: str) -> TextRow:
        """The question without a plan (the paper's training prompt, B.2), answered in this form."""
        question = Turn("user", ask("direct", form, subtask=self.row.instruction), self.row.turns[-2].images)
        answer = self.forms[form].codec.encode(self.motion).text
        return replace(self.row, key=f"{self.row.key}/{form}", turns=(question, Turn("assistant", answer)))


def motions_of(folder: Path, most: int) -> list[AskedMotion]:
    """The motions that a folder's action texts say. Raises UserError where there are none that every form can say."""
    rows = read_rows(folder, ["actions"], most)
    robot, made = read_index(folder, "texts").robot, read_about(folder).get("action_text")
    if robot is None or made is None or made["codec"] == "fast":
        raise UserError(
            f"{folder}: its actions are not written in rows that every form can say; construct texts with codec "
            "decimals, sentence or tokens."
        )
    own = ActionText.from_dict(made, robot)
    forms = {form: ActionText.open(replace(own.config, codec=form, settings={}), robot) for form in FORMS}
    found = []
    for row in rows:
        motion = own.read(row.answer).motion
        if motion is None or not row.instruction:
            raise UserError(f"{folder}: the answer of {row.key} is no action text of its codec; construct it again.")
        found.append(AskedMotion(row, motion, forms))
    return found


def score_forms(
    vlm: VlmModel, encoder: ChatEncoder, motions: Sequence[AskedMotion], prompts: int
) -> dict[str, FormScores]:
    """Scores by form. prompts: as LikelihoodRequest has it."""
    scores = {}
    for form in FORMS[:2]:
        scores[form] = _scored(vlm, encoder, [encoder.prepare(item.told(form)) for item in motions])
    names = motions[0].forms["tokens"].tokens
    renamed = with_tokens(encoder, names)
    prepared = [renamed.prepare(item.told("tokens")) for item in motions]
    by_rule = tuple(renamed.tokenizer.encode(name, add_special_tokens=False)[0] for name in names)
    scores[BY_RULE] = replace(_scored(vlm, renamed, prepared), rare=by_rule)
    if prompts:
        questions = [encoder.question(item.told("decimals")) for item in motions[:prompts]]
        rare = least_likely(vlm, encoder, questions, len(names))
        swapped = [_swapped(row, dict(zip(by_rule, rare, strict=True))) for row in prepared]
        scores[MEASURED] = replace(_scored(vlm, renamed, swapped), rare=rare)
    return scores


@torch.no_grad()
def least_likely(vlm: VlmModel, encoder: ChatEncoder, prompts: Sequence[EncodedText], count: int) -> tuple[int, ...]:
    """The `count` tokens, in the order of their ids, that the model gives the least probability on average over every
    token of these prompts. Special tokens are not among them."""
    sums_V: torch.Tensor | None = None
    for prompt in tqdm(prompts, desc="measuring rare tokens", unit="prompt", disable=None):
        batch = encoder.batch([prompt])
        every = replace(batch, answer_index=torch.arange(1, prompt.tokens)).to(vlm.device)
        probs_V = vlm.answer_logits(every).softmax(dim=-1).double().sum(dim=0)
        sums_V = probs_V if sums_V is None else sums_V + probs_V
    assert sums_V is not None
    special = [number for number, token in encoder.tokenizer.added_tokens_decoder.items() if token.special]
    sums_V = sums_V[: len(encoder.tokenizer)]
    sums_V[[number for number in (*special, *encoder.never_written, *encoder.end_token_ids)]] = torch.inf
    return tuple(sorted(sums_V.argsort(stable=True)[:count].tolist()))


def summary_table(numbers: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = [f"{'form':20}{'tokens':>8}{'log-prob a token':>18}{'of the answer':>16}"]
    for name, one in numbers["forms"].items():
        lines.append(f"{name:20}{one['tokens']:8.1f}{one['a_token']['mean']:18.2f}{one['answer']['mean']:16.1f}")
    return "\n".join(lines)


def figure(scores: Mapping[str, FormScores]) -> bytes:
    """SVG: a line a form, its answers' log-probabilities a token and as a whole; bars hold 90 % and half of them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**style.style(9), "svg.hashsalt": "likelihood"}):
        drawn = Figure(figsize=(8.5, 0.5 * len(scores) + 1.1), layout="constrained")
        panels = drawn.subplots(1, 2, sharey=True)
        for axes, what in zip(panels, ("log-probability a token", "log-probability of the answer"), strict=True):
            axes.set_xlabel(what)
            axes.grid(color=INK, alpha=0.2, linewidth=0.6, axis="x")
            for place, one in enumerate(scores.values()):
                values = one.a_token if axes is panels[0] else np.array(one.totals)
                low, lower, middle, upper, high = np.quantile(values, SHARES)
                axes.plot([low, high], [place, place], color=BAR, linewidth=2, alpha=0.4)
                axes.plot([lower, upper], [place, place], color=BAR, linewidth=6, alpha=0.6)
                axes.plot([middle], [place], "|", color=DOT, markersize=14)
            axes.set_yticks(range(len(scores)), list(scores))
        panels[0].invert_yaxis()
        return style.rendered(drawn)


def _scored(vlm: VlmModel, encoder: ChatEncoder, rows: Sequence[EncodedText]) -> FormScores:
    log_probs = token_log_probs(vlm, encoder, rows)
    return FormScores(tuple(map(sum, log_probs)), tuple(map(len, log_probs)))


def _swapped(row: EncodedText, other: Mapping[int, int]) -> EncodedText:
    """The row with other tokens in its answer."""
    ids_L, labels_L = row.ids_L.clone(), row.labels_L.clone()
    for number, replacement in other.items():
        here_L = row.labels_L == number
        ids_L[here_L], labels_L[here_L] = replacement, replacement
    return replace(row, ids_L=ids_L, labels_L=labels_L)


def _described(one: FormScores, encoder: ChatEncoder) -> dict[str, Any]:
    named = encoder.tokenizer.convert_ids_to_tokens(list(one.rare))
    return {
        "tokens": float(np.mean(one.counts)),
        "a_token": _spread(one.a_token),
        "answer": _spread(np.array(one.totals)),
        "rare": dict(zip(map(str, one.rare), named, strict=True)),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(values, SHARES).tolist()
    return {"mean": float(values.mean()), **{f"p{round(100 * q)}": v for q, v in zip(SHARES, quantiles, strict=True)}}
