"""A WordNet of two verbs and a BERT of sixteen dims, for what real data of theirs is asked in the same way."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] push move the red blue star cube left to"


@pytest.fixture(scope="session")
def nltk_data(tmp_path_factory):
    """A folder of nltk's data whose WordNet knows one thing: `lift` and `hoist` have a meaning in common."""
    folder = tmp_path_factory.mktemp("nltk_data")
    wordnet = folder / "corpora" / "wordnet"
    wordnet.mkdir(parents=True)
    for kind in ("noun", "verb", "adj", "adv"):
        for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc"):
            (wordnet / name).write_text("")
    (wordnet / "data.verb").write_text("00000000 00 v 02 lift 0 hoist 0 000 00 | move upwards  \n")
    (wordnet / "index.verb").write_text("lift v 1 0 1 0 00000000  \nhoist v 1 0 1 0 00000000  \n")
    (wordnet / "index.sense").write_text("lift%2:00:00:: 00000000 1 0\nhoist%2:00:00:: 00000000 1 0\n")
    (wordnet / "lexnames").write_text("00\tverb.motion\t2\n")
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A folder of a small BERT: random weights, for arithmetic alone."""
    folder = tmp_path_factory.mktemp("a_bert")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS.split()), max_position_embeddings=16, **size)).save_pretrained(folder)
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n") + "\n")
    about = {"tokenizer_class": "BertTokenizer", "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder
