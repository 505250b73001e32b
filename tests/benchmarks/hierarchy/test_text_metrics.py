"""Why: a metric that is not the field's own number is a number of its own. The libraries' documented values and cases
that can be reckoned by hand come out, and what is missing never becomes a value."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from benchmarks.hierarchy import texts
from la4vla.types import UserError

GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
RIGHT = "It is a guide to action that ensures that the military will forever heed Party commands"


@pytest.fixture(scope="module")
def metrics():
    return texts.open_metrics()


def test_bleu_by_hand(metrics):
    # `push the star`: 3 of 3 words, 1 of 2 pairs, 0 of 1 triples (smoothed to 1/2), no four words; a word too short.
    by_hand = math.exp(1 - 4 / 3) * (1 * 1 / 2 * 1 / 2) ** (1 / 3)
    found = metrics.of(["Push the star", "push the red star", ""], ["push the red star"] * 3)[texts.BLEU]
    assert found == pytest.approx([by_hand, 1.0, 0.0])


def test_corpus_bleu_by_hand(metrics):
    said = ["Push the star", "move the red star left"]
    right = ["push the red star", "move the red star left"]
    by_hand = math.exp(1 - 9 / 8) * (8 / 8 * 5 / 6 * 3 / 4 * 2 / 2) ** (1 / 4)
    assert metrics.corpus_bleu(said, right) == pytest.approx(by_hand)


def test_rouge_and_meteor_are_those_of_the_libraries_documentation(metrics):
    fox = "The quick brown fox jumps over the lazy dog"
    assert metrics.of(["The quick brown dog jumps on the log."], [fox])[texts.ROUGE][0] == pytest.approx(
        0.7059, abs=1e-4
    )
    assert metrics.of([GUIDE], [RIGHT])[texts.NO_SYNONYMS][0] == pytest.approx(0.6944, abs=1e-4)


def test_without_data_the_columns_say_so(metrics):
    assert metrics.names == (texts.BLEU, texts.ROUGE, texts.NO_SYNONYMS)
    assert set(metrics.missing) == {texts.METEOR, texts.BERTSCORE}
    assert set(metrics.of(["push"], ["push"])) == set(metrics.names)


def test_synonyms_count_with_a_wordnet(metrics, nltk_data):
    known = texts.open_metrics(nltk_data)
    assert known.meteor == texts.METEOR and set(known.missing) == {texts.BERTSCORE}
    pair = (["hoist the cube"], ["lift the cube"])
    assert known.of(*pair)[texts.METEOR][0] == pytest.approx(1 - 0.5 * (1 / 3) ** 3)  # all three match, in one run
    assert metrics.of(*pair)[texts.NO_SYNONYMS][0] < 0.7


def test_bertscore_is_the_greedy_cosine_of_the_layer(bert):
    found = texts.open_metrics(bert=bert, bert_layers=1)
    assert texts.BERTSCORE in found.names
    said, right = "push the red star", "move the star left"
    value = found.of([said], [right])[texts.BERTSCORE][0]

    def embedded(sentence):
        vocab = (bert / "vocab.txt").read_text().split()
        ids = [vocab.index(word) for word in ["[CLS]", *sentence.split(), "[SEP]"]]
        states = BertModel.from_pretrained(bert).eval()(torch.tensor([ids]), output_hidden_states=True).hidden_states[1]
        return torch.nn.functional.normalize(states[0], dim=-1)

    with torch.no_grad():
        near_SR = embedded(said) @ embedded(right).T
    precision, recall = near_SR[1:-1].amax(1).mean(), near_SR[:, 1:-1].amax(0).mean()  # ends of sentence weigh nothing
    assert value == pytest.approx(float(2 * precision * recall / (precision + recall)), abs=1e-5)


def test_a_bert_without_all_weights_is_refused(bert, tmp_path):
    broken = shutil.copytree(bert, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights.pop(next(name for name in weights if "query.weight" in name))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .*random ones measure nothing"):
        texts.open_metrics(bert=broken, bert_layers=1)
    with pytest.raises(UserError, match="has 2 layers; give --bert-layers"):
        texts.open_metrics(bert=bert, bert_layers=3)
    with pytest.raises(UserError, match="no folder of a model"):
        texts.open_metrics(bert=tmp_path, bert_layers=1)


def test_a_folder_without_a_wordnet_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no corpora/wordnet"):
        texts._wordnet(tmp_path)
