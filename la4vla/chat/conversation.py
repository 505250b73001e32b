"""Conversations: ask a model, read its answer, tell it what is wrong and ask again, until an answer can be used.

Owns the messages of the chat-completions protocol and the requests made of them. What an answer means is decided by the
reader that the caller hands in. `responses` keeps every reply, so a question that was answered before costs nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from la4vla.chat.endpoint import Endpoint, Refused
from la4vla.chat.responses import Responses, request_name
from la4vla.config import VlmConfig

Message = dict[str, Any]
"""role and content of the chat-completions protocol."""

Part = dict[str, Any]
"""A piece of a message's content: a text, an image or a video."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class AnswerFormat:
    """What the endpoint is told to answer with.

    name      of the schema
    schema    JSON schema; sent only if vlm.answer_format is json_schema
    """

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """What came of a conversation.

    answer        what the reader made of the first usable reply; None if no reply was usable
    problems      what the reader found wrong with the last reply, one sentence each
    tokens_in     input tokens paid for; 0 for replies from the cache
    tokens_out    output tokens paid for
    calls         requests made, retries included
    failed        why there is no answer, one sentence; empty if there is one
    """

    answer: Answer | None
    problems: tuple[str, ...]
    tokens_in: int
    tokens_out: int
    calls: int
    failed: str = ""


class Conversations:
    """Conversations with the model of a config. May be used from several threads at once.

    Opens the endpoint at the first question that the cache cannot answer: what is answered already needs no endpoint,
    key or openai client.
    """

    def __init__(self, config: VlmConfig, cache: Path) -> None:
        self._config = config
        self._endpoint: Endpoint | None = None
        self._opening = Lock()
        self._responses = Responses(cache)

    def hold(
        self,
        messages: Sequence[Message],
        answer_format: AnswerFormat,
        read: Callable[[str], tuple[Answer | None, list[str]]],
        again: Callable[[str, Sequence[str]], list[Message]],
    ) -> Outcome[Answer]:
        """Asks up to `vlm.attempts` times and returns the first usable answer.

        messages: the beginning. read: a reply's text -> the answer, or None if it is unusable, and what is wrong with
        it. again: text and problems of an unusable reply -> the messages that are added before the next question.

        A conversation without a usable answer is forgotten: from the cache, its replies would fail for ever. Raises
        UserError if the endpoint cannot be used, or not any more.
        """
        config, messages = self._config, list(messages)
        problems: list[str] = []
        names: list[str] = []
        tokens_in = tokens_out = calls = 0
        for _ in range(config.attempts):
            request = _request(messages, answer_format, config)
            names.append(request_name(request))
            reply = self._responses.get(names[-1])
            if reply is None:
                try:
                    reply, tries = self._opened().ask(request)
                except Refused as error:
                    self._responses.forget(names[:-1])
                    return Outcome(None, (), tokens_in, tokens_out, calls + 1, failed=str(error))
                self._responses.put(names[-1], reply)
                tokens_in, tokens_out, calls = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out, calls + tries
            answer, problems = read(reply.text)
            if answer is not None:
                return Outcome(answer, tuple(problems), tokens_in, tokens_out, calls)
            messages = messages + again(reply.text, problems)
        self._responses.forget(names)
        failed = f"{config.attempts} answers, none usable; the last one: {' '.join(problems)}"
        return Outcome(None, tuple(problems), tokens_in, tokens_out, calls, failed)

    def _opened(self) -> Endpoint:
        """The endpoint that all threads share, as it holds their rate limit. Raises UserError as Endpoint does."""
        with self._opening:
            self._endpoint = self._endpoint or Endpoint(self._config)
            return self._endpoint


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def image_part(jpeg: bytes) -> Part:
    return {"type": "image_url", "image_url": {"url": _data_url(jpeg)}}


def video_part(jpegs: Sequence[bytes], fps: float) -> Part:
    """A list of frames as Alibaba's Model Studio takes it for Qwen. fps: frames a second that are shown."""
    return {"type": "video", "video": [_data_url(jpeg) for jpeg in jpegs], "fps": round(fps, 3)}


def complaint(answer: str, text: str) -> list[Message]:
    """The model's own answer and the user's reply to it. Some endpoints refuse an empty message."""
    return [{"role": "assistant", "content": answer or "(nothing)"}, {"role": "user", "content": text}]


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _request(messages: Sequence[Message], answer_format: AnswerFormat, config: VlmConfig) -> dict[str, Any]:
    """A chat-completions request: everything that the answer depends on."""
    schema = {"name": answer_format.name, "schema": answer_format.schema, "strict": True}
    formats = {
        "json_schema": {"type": "json_schema", "json_schema": schema},
        "json_object": {"type": "json_object"},
        "text": {"type": "text"},
    }
    return {
        "model": config.model,
        "messages": list(messages),
        "temperature": config.temperature,
        "response_format": formats[config.answer_format],
    }
