"""Why: a pattern that matches nothing, or a weight that is not where it was expected, trains a policy from random
numbers where its user believes in pretrained ones. So names are a table here, and every slip a sentence."""

import pytest

from la4vla.config import InitPartsConfig
from la4vla.model.parts import choose
from la4vla.types import UserError

STORED = {"old.body.0.weight": (2, 2), "old.body.1.weight": (2, 2), "old.out.weight": (3, 2), "aux.weight": (1,)}
NEEDED = {"body.0.weight": (2, 2), "body.1.weight": (2, 2), "out.weight": (5, 2)}
INTO = {"old.*": "*"}


def chosen(**wanted):
    parts = choose(STORED, NEEDED, InitPartsConfig(**wanted), "run")
    return dict(parts.taken), dict(parts.left), parts.fresh


def test_renamed_then_taken_then_left():
    everything = {f"body.{layer}.weight": f"old.body.{layer}.weight" for layer in (0, 1)}
    others = {"out.weight": "old.out.weight", "aux.weight": "aux.weight"}
    assert chosen(rename=INTO, leave=["out.*", "aux.*"]) == (everything, others, ("out.weight",))
    assert chosen(rename=INTO, take=["body.[0-9].weight"]) == (everything, others, ("out.weight",))
    taken, left, fresh = chosen(rename={"old.body.*.*": "body.*.*"}, take=["body.*"], leave=["body.1.*"])
    assert taken == {"body.0.weight": "old.body.0.weight"} and fresh == ("body.1.weight", "out.weight")
    assert left == {
        "body.1.weight": "old.body.1.weight",
        "old.out.weight": "old.out.weight",
        "aux.weight": "aux.weight",
    }


def test_the_first_rename_that_matches_renames():
    swapped = {"old.body.0.*": "body.1.*", "old.body.1.*": "body.0.*", "old.*": "*"}
    taken, _, _ = chosen(rename=swapped, take=["body.*"])
    assert taken == {"body.1.weight": "old.body.0.weight", "body.0.weight": "old.body.1.weight"}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            dict(take=["body.*"]),
            r"take: `body\.\*` matches no weight of run; the nearest names are old\.body\.1\.weight, old",
        ),
        (dict(rename=INTO, leave=["oui.weight"]), r"leave: `oui\.weight` matches no .* names are out\.weight"),
        (dict(rename={"odl.*": "*"}), r"rename: `odl\.\*` matches no weight"),
        (dict(rename={"old.body.*": "body"}), r"must have the same number of \*"),
        (dict(rename={"old.body.?.*": "body.*"}), r"rename: `old\.body\.\?\.\*` matches no weight"),
        (dict(rename={"old.body.0.*": "body.*", "old.body.1.*": "body.*"}), "the same name, body.weight; rename one"),
        (dict(rename=INTO, leave=["*"]), "takes nothing of run"),
        (dict(rename=INTO, leave=["out.*"]), r"takes 1 \(aux\.weight\) of run, which this model does not have"),
        (
            dict(rename=INTO, leave=["aux.*"]),
            r"takes 1 \(out\.weight\) .* \[3, 2\] there, \[5, 2\] here\); add them to",
        ),
    ],
)
def test_a_slip_is_one_sentence(wanted, words):
    with pytest.raises(UserError, match=words) as caught:
        chosen(**wanted)
    assert "\n" not in str(caught.value)
