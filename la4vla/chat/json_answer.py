"""JSON answers: finds the JSON in what a language model wrote. Knows nothing of what the JSON means."""

from __future__ import annotations

import json
import re
from typing import Any

_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)  # some servers cut the opening tag off
_OPENING = re.compile(r"[\[{]")


def last_list(text: str) -> list[dict[str, Any]] | None:
    """The last complete list of objects in the text, bare or as a value of an object; None if there is none.

    Everything around it is passed over: code fences, talk, the thoughts before `</think>`. An empty list counts only
    if the text has no other list.
    """
    text = _THOUGHT.sub("", text)
    decoder, answer, position = json.JSONDecoder(), None, 0
    while bracket := _OPENING.search(text, position):
        position = bracket.start() + 1
        try:
            value, end = decoder.raw_decode(text, bracket.start())
        except RecursionError:  # the model went on writing brackets
            break
        except ValueError:
            continue
        values = [value] if isinstance(value, list) else list(value.values())
        lists = [item for item in values if isinstance(item, list) and all(isinstance(entry, dict) for entry in item)]
        if full := [item for item in lists if item]:
            answer, position = full[0], end
        elif lists and answer is None:
            answer = lists[0]
    return answer


def last_object(text: str, field: str) -> dict[str, Any] | None:
    """The last complete object in the text that has the field; None if there is none. Everything around it is passed
    over, as by `last_list`."""
    text = _THOUGHT.sub("", text)
    decoder, answer, position = json.JSONDecoder(), None, 0
    while (position := text.find("{", position)) >= 0:
        try:
            value, position = decoder.raw_decode(text, position)
        except RecursionError:
            break
        except ValueError:
            position += 1
            continue
        if isinstance(value, dict) and field in value:
            answer = value
    return answer
