"""Why: a policy that learns to write must see its prompts token by token as the models do that only write, and learn
answers alone; a token too many in the labels teaches it to repeat questions."""

import pickle

import numpy as np
import pytest
import torch

from la4vla.config import ModelConfig
from la4vla.data.transforms import ResizeImages
from la4vla.model.backbone import IMAGE_INDEX, IMAGES
from la4vla.model.conversation import ConversationEncoder
from la4vla.model.policy import build_policy
from la4vla.model.presets import TINY
from la4vla.model.tokenizer import Prompter, build_prompter
from la4vla.types import NOT_COUNTED, TextRow, Turn, UserError
from la4vla.vlm.load import build_vlm
from la4vla.vlm.tiny import tiny_encoder

PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
ROWS = (
    TextRow("a/one", (Turn("user", "where is the puck?", (0,)), Turn("assistant", "on the left")), (PICTURE,), "scene"),
    TextRow(
        "a/two",
        (
            Turn("system", "you control a robot"),
            Turn("user", " lift it ", (0, 1)),
            Turn("assistant", "move up"),
            Turn("user", "and then?"),
            Turn("assistant", "open the gripper and release the object"),
        ),
        (PICTURE, 255 - PICTURE),
        "next",
    ),
    TextRow("a/three", (Turn("user", "what is a gripper?"), Turn("assistant", "a hand")), (), "scene"),
)


@pytest.fixture
def encoder() -> ConversationEncoder:
    return ConversationEncoder(build_prompter(ModelConfig()), TINY.vocab, ResizeImages(TINY.image_size).resized)


@pytest.fixture
def writing(tmp_path):
    """With tiny_vlm's tokenizer, and that model's own encoder."""
    theirs = tiny_encoder()
    theirs.save(tmp_path)
    ours = ConversationEncoder(Prompter.load(tmp_path, TINY.spec), TINY.vocab, ResizeImages(TINY.image_size).resized)
    return ours, theirs


def test_tokens_and_labels_are_those_of_a_model_that_only_writes(writing):
    """Two implementations: this one places ids, the other renders InternVL's template and cuts it."""
    ours, theirs = (encoder.batch([encoder.prepare(row) for row in ROWS]) for encoder in writing)
    for name in ("input_ids_BL", "text_mask_BL", "labels_BL", "answer_index"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.images[IMAGES].shape == (3, 3, 112, 112) and ours.images[IMAGES].dtype == torch.uint8
    assert ours.keys == theirs.keys and ours.counted == theirs.counted > 0


def test_a_policy_gives_the_loss_of_the_model_whose_weights_it_has(writing):
    """The same backbone, and the same language head behind it."""
    vlm, _ = build_vlm("tiny_vlm", seed=0)
    policy = build_policy(ModelConfig(), seed=0, writes=True).eval()
    policy.language_head.load_state_dict(vlm.network.lm_head.state_dict())
    ours, theirs = (encoder.batch([encoder.prepare(row) for row in ROWS]) for encoder in writing)
    side = torch.nn.functional.interpolate(theirs.images["pixel_values"], 112)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((ours.images[IMAGES].float() / 255.0) - mean) / std  # the libraries resize otherwise
    assert side.shape == pixels.shape
    seen = type(theirs)(**{**vars(theirs), "images": {"pixel_values": pixels}})
    with torch.no_grad():
        mine, other = policy.log_probs(ours), vlm.eval().log_probs(seen)
    assert (mine - other).abs().max() < 2e-5
    assert policy(ours)[1] == ours.counted


def test_only_answers_and_their_ends_are_learned(encoder):
    row = encoder.prepare(ROWS[1])
    learned = [token for token, label in zip(row.ids, row.labels, strict=True) if label != NOT_COUNTED]
    again = pickle.loads(pickle.dumps(encoder))
    assert again.prepare(ROWS[1]).ids == row.ids
    text = encoder._prompter.tokenizer.decode(learned, skip_special_tokens=False)
    assert text == "move up<|im_end|>open the gripper and release the object<|im_end|>"


def test_images_and_padding_move_nothing_else(encoder):
    policy = build_policy(ModelConfig(), seed=0, writes=True).eval()
    with torch.no_grad():
        together = policy.log_probs(encoder.batch([encoder.prepare(row) for row in ROWS]))
        alone = [policy.log_probs(encoder.batch([encoder.prepare(row)])) for row in ROWS]
    assert (together - torch.cat(alone)).abs().max() < 1e-5
    batch = encoder.batch([encoder.prepare(ROWS[2])])
    assert batch.images == {} and encoder.batch([encoder.prepare(ROWS[0])]).images[IMAGE_INDEX].numel() == 16


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (TextRow("k/x", (Turn("user", "lift", (1,)), Turn("assistant", "up")), (PICTURE,), "q"), "image 2 is missing"),
        (TextRow("k/x", (Turn("user", "lift"), Turn("assistant", "up")), (PICTURE,), "q"), "no turn shows image 1"),
        (TextRow("k/x", (Turn("user", "lift"),), (), "q"), "does not end with an answer"),
        (TextRow("k/x", (Turn("user", "lift " * 200), Turn("assistant", "up")), (), "q"), "the model takes 192"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(encoder, row, words):
    with pytest.raises(UserError, match=words) as caught:
        encoder.prepare(row)
    assert str(caught.value).startswith("k/x: ")


def test_a_tokenizer_without_room_for_turns_is_refused():
    with pytest.raises(UserError, match="leave no room"):
        ConversationEncoder(build_prompter(ModelConfig()), 744, ResizeImages(112).resized)


def test_insulated_actions_teach_the_head_alone_and_conversations_the_backbone(encoder, make_batch):
    policy = build_policy(ModelConfig(dropout=0.0), seed=0, writes=True).train()
    open_sum = policy(make_batch(policy.spec, "vla"))[0]
    policy.insulated = True
    for kind in ("la", "vla"):
        policy.zero_grad()
        error, _ = policy(make_batch(policy.spec, kind))
        error.backward()
        reached = {name.partition(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
        assert reached == {"head"}
    assert torch.equal(error, open_sum), "insulation is of gradients alone"
    policy.zero_grad()
    policy(encoder.batch([encoder.prepare(row) for row in ROWS]))[0].backward()
    reached = {name.partition(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
    assert reached == {"backbone", "language_head"}


def test_without_conversations_there_is_no_language_head_and_the_weights_are_the_same():
    plain, writes = (
        build_policy(ModelConfig(), 3).state_dict(),
        build_policy(ModelConfig(), 3, writes=True).state_dict(),
    )
    assert set(writes) - set(plain) == {"language_head.weight"}
    assert all(torch.equal(plain[name], writes[name]) for name in plain)
