"""How near a written sentence is to the one that people gave: BLEU, ROUGE-1, METEOR and BERTScore, by the libraries
that the field uses. All are per sentence, between 0 and 1, and higher is nearer.

Two need data that no package brings. WordNet lies in a folder of nltk's data, else METEOR is without synonyms and its
column says so. The model of BERTScore lies in a folder in transformers' layout, else its column is empty; a folder that
lacks weights is refused, since the library would fill them in at random.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from la4vla.types import UserError

BLEU, ROUGE, METEOR, BERTSCORE = "BLEU", "ROUGE-1", "METEOR", "BERTScore"
NO_SYNONYMS = "METEOR (no synonyms)"
CORPUS_BLEU = "corpus BLEU"
WORD = re.compile(r"\w+")
BERT_COMMAND = "--bert DIR --bert-layers N, DIR a folder of a BERT in transformers' layout"
WORDNET_COMMAND = "--wordnet DIR, DIR a folder of nltk's data with corpora/wordnet (docs/measuring_hierarchy.md)"


@dataclass(frozen=True)
class TextMetrics:
    """Open one with `open_metrics`.

    meteor  name of METEOR's column
    bert    None: no BERTScore
    """

    meteor: str
    wordnet: Any
    rouge: Any
    bleu: Any
    bert: Any
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns that have values."""
        return (BLEU, ROUGE, self.meteor, *([BERTSCORE] if self.bert is not None else []))

    @property
    def missing(self) -> dict[str, str]:
        """Column -> what to give to the command that measures for it to have values."""
        absent = {} if self.bert is not None else {BERTSCORE: BERT_COMMAND}
        return absent if self.meteor == METEOR else {METEOR: WORDNET_COMMAND, **absent}

    def of(self, said: Sequence[str], right: Sequence[str]) -> dict[str, list[float]]:
        """By column, one value a sentence. BLEU: smoothed as sacrebleu's `exp`, lower case, up to the n-grams that the
        sentence has; ROUGE-1: F of stems; METEOR: of words in lower case; BERTScore: F, not rescaled."""
        from nltk.translate.meteor_score import single_meteor_score

        pairs = list(zip(said, right, strict=True))
        found = {
            BLEU: [self.bleu.sentence_score(one, [other]).score / 100 for one, other in pairs],
            ROUGE: [float(self.rouge.score(other, one)["rouge1"].fmeasure) for one, other in pairs],
            self.meteor: [
                float(single_meteor_score(words(other), words(one), wordnet=self.wordnet)) for one, other in pairs
            ],
        }
        if self.bert is not None and pairs:
            _, _, f = self.bert.score([one for one, _ in pairs], [other for _, other in pairs])
            found[BERTSCORE] = [float(value) for value in f]
        return found

    def corpus_bleu(self, said: Sequence[str], right: Sequence[str]) -> float:
        """BLEU of all sentences as one text, 0 to 1, with sacrebleu's defaults but lower case."""
        from sacrebleu.metrics.bleu import BLEU as Bleu

        return float(Bleu(lowercase=True).corpus_score(list(said), [list(right)]).score) / 100


def open_metrics(
    wordnet: Path | None = None, bert: Path | None = None, bert_layers: int = 0, device: str = "cpu"
) -> TextMetrics:
    """The metrics with the data that is at hand.

    bert_layers: whose output is compared; no folder says which is best. Raises UserError without the libraries, for a
    folder that is no WordNet and for a model that lacks weights.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU as Bleu
    except ImportError as error:
        raise UserError(f'text metrics need {error.name}: pip install "la4vla[metrics]".') from error
    about = {name: importlib.metadata.version(name) for name in ("sacrebleu", "rouge-score", "nltk")}
    model = None
    if bert is not None:
        model = _bert(bert, bert_layers, device)
        about |= {"bert-score": importlib.metadata.version("bert-score"), "bert": bert.name, "bert_layers": bert_layers}
    return TextMetrics(
        meteor=NO_SYNONYMS if wordnet is None else METEOR,
        wordnet=_NoSynonyms() if wordnet is None else _wordnet(wordnet),
        rouge=RougeScorer(["rouge1"], use_stemmer=True),
        bleu=Bleu(lowercase=True, effective_order=True),
        bert=model,
        about=about,
    )


def words(sentence: str) -> list[str]:
    """In lower case, without punctuation."""
    return WORD.findall(sentence.lower())


class _NoSynonyms:
    """A WordNet in which no word has a synonym: METEOR then matches words and their stems alone."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _wordnet(folder: Path) -> Any:
    """nltk's reader of the data in `folder`, with every file read once. Raises UserError where there is none."""
    import nltk.data
    from nltk.corpus.reader import CorpusReader, WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    if not any((folder / "corpora" / name).exists() for name in ("wordnet", "wordnet.zip")):
        raise UserError(f"{folder}: holds no corpora/wordnet; see docs/measuring_hierarchy.md.")
    nltk.data.path.insert(0, str(folder.resolve()))  # nltk opens files below these folders alone
    wordnet: Any = LazyCorpusLoader("wordnet", WordNetCorpusReader, LazyCorpusLoader("omw-1.4", CorpusReader, ".*"))
    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError) as error:
        raise UserError(f"{folder}: its wordnet is not whole ({error}); see docs/measuring_hierarchy.md.") from error
    return wordnet


def _bert(folder: Path, layers: int, device: str) -> Any:
    """bert-score's own scorer. Raises UserError as open_metrics does."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no folder of a model; --bert takes {BERT_COMMAND.partition(', ')[2]}.")
    config = json.loads((folder / "config.json").read_text())
    most = config.get("num_hidden_layers", config.get("n_layers", 0))
    if not 1 <= layers <= most:
        raise UserError(f"{folder} has {most} layers; give --bert-layers from 1 to {most}, whose output is compared.")
    if "t5" in str(folder) and config.get("model_type") != "t5":
        raise UserError(f"{folder}: bert-score takes a path with `t5` in it for a T5; lay the model elsewhere.")
    try:
        from bert_score import BERTScorer
        from transformers import AutoModel
    except ImportError as error:
        raise UserError(f'BERTScore needs {error.name}: pip install "la4vla[metrics]".') from error
    try:
        _, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        absent = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    except OSError as error:
        raise UserError(f"{folder}: its model cannot be read ({error}); copy it again.") from error
    if absent:
        raise UserError(f"{folder} lacks weights ({absent[0]}); random ones measure nothing, copy the whole model.")
    return BERTScorer(model_type=str(folder), num_layers=layers, device=device)
