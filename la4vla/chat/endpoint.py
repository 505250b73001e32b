"""Endpoint: requests to an OpenAI-compatible server, as many a minute as it allows, repeated while it fails.

Owns the rate limit, the waits and repetitions, and a sentence for every way in which a server can fail. It does not
look at what an answer means. The `openai` client's own retries are off, so that every request is counted.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from la4vla.chat.responses import Reply, text_of
from la4vla.config import VlmConfig
from la4vla.types import UserError

_TRIES = 6  # of a request; with a backoff that starts at 2 s they last a minute, over which servers count tokens
_WAIT_S = 60.0  # longest wait between two tries if the server does not say how long to wait
_RETRY_AFTER_S = 300.0  # longest wait that a server may ask for; beyond it the run stops
_PASSING = (408, 409, 425, 429)  # and 500 and above: the same request may succeed later
_SETTINGS = {
    401: "set the environment variable {key} to a valid key",
    402: "the account is out of credit, top up",
    403: "the key of {key} may not use `{model}`, change the key or vlm.model",
    404: "set vlm.base_url and vlm.model to ones that exist",
}
"""Statuses that wrong settings cause, and their cures."""

_QUOTA = ("insufficient_quota", "Arrearage")  # OpenAI's and Alibaba's codes for an account without credit
_REFUSALS = 10  # refused requests, before any was answered, after which the settings are taken to be wrong


class Refused(UserError):
    """The endpoint refuses one request. It may answer others."""


class RateLimit:
    """Evenly spaced turns, shared by threads."""

    def __init__(self, per_minute: int) -> None:
        self._every_s = 60.0 / per_minute
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when it is this thread's turn."""
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._every_s
                    return
                delay = self._next - now
            time.sleep(delay)

    def pause(self, seconds: float) -> None:
        """Lets no thread have a turn for so many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """The server that a config names. May be used from several threads at once.

    Raises UserError without vlm.base_url, without a key, or without the `openai` package.
    """

    def __init__(self, config: VlmConfig) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise UserError('proposer=vlm needs the openai client: pip install "la4vla[construct]".') from error
        if not config.base_url:
            raise UserError("vlm.base_url is empty; set it to your endpoint's address, it usually ends in /v1.")
        key = os.environ.get(config.api_key_variable, "")
        if not key:
            raise UserError(
                f"the environment variable {config.api_key_variable} is empty; put the key of {config.base_url} into "
                "it, or any word if the server needs no key (vlm.api_key_variable names another variable)."
            )
        self._config = config
        self._client = openai.OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=0)
        self._limit = RateLimit(config.requests_per_minute)
        self._answered = False
        self._refused = 0

    def ask(self, request: Mapping[str, Any]) -> tuple[Reply, int]:
        """(the reply to a chat-completions request, the number of requests that it took).

        Raises Refused, or UserError if going on makes no sense: wrong settings, no quota left, or 6 failed tries.
        """
        wait = trouble = None
        for number in range(_TRIES):
            if wait is not None:
                time.sleep(wait)
            self._limit.wait()
            outcome = self._try(request)
            if isinstance(outcome, Reply):
                self._answered = True
                return outcome, number + 1
            trouble, wait = outcome
            if wait is None:
                wait = min(self._config.backoff_s * 2**number, _WAIT_S)
        raise UserError(f"{trouble} All finished episodes are kept; the same command goes on from there.")

    def _try(self, request: Mapping[str, Any]) -> Reply | tuple[str, float | None]:
        """One request: its reply, or a sentence about passing trouble and the seconds that the server asks to wait."""
        import openai

        where = self._config.base_url
        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            answer = create(**request).http_response.json()
        except openai.APITimeoutError:
            return f"{where} gave no answer within {self._config.timeout_s:g} s; raise vlm.timeout_s.", None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return f"{where} cannot be reached ({cause}); check vlm.base_url and your network.", None
        except openai.APIStatusError as error:
            return self._status_trouble(error)
        except (json.JSONDecodeError, UnicodeDecodeError):
            answer = None
        reply = reply_of(answer)
        if reply is None:
            return f"{where} answers, but not with a chat completion; check vlm.base_url, its /v1 included.", None
        return reply

    def _status_trouble(self, error: Any) -> tuple[str, float | None]:
        """A sentence about an openai.APIStatusError, and the seconds that the server asks to wait.

        Raises UserError or Refused if the same request cannot succeed later.
        """
        config, status = self._config, error.status_code
        said = " ".join(str(error.message).removeprefix(f"Error code: {status} - ").split())
        words = f"{config.base_url} answers {status} ({said[:300]})"
        broke = error.code in _QUOTA or error.type in _QUOTA
        if status in _SETTINGS or (broke and status not in _PASSING):
            cure = _SETTINGS[402 if broke else status].format(key=config.api_key_variable, model=config.model)
            raise UserError(f"{words}; {cure}. All finished episodes are kept; the same command goes on from there.")
        if status not in _PASSING and status < 500:
            self._refused += 1
            if not self._answered and self._refused >= _REFUSALS:
                raise UserError(
                    f"{words}, and has answered nothing else {self._refused} times; check vlm.model, vlm.frames_as and "
                    "vlm.answer_format against what the endpoint understands."
                )
            raise Refused(f"{words}.")
        cure = "try later"
        if status == 429:
            cure = "top up the account" if broke else "lower vlm.requests_per_minute or vlm.concurrency"
        wait = retry_after(error.response.headers)
        if wait is not None and wait > _RETRY_AFTER_S:
            raise UserError(f"{words} and wants {wait:.0f} s of rest; {cure} and run the same command again then.")
        if wait is not None:
            self._limit.pause(wait)
        return f"{words}; {cure}.", wait


def reply_of(answer: Any) -> Reply | None:
    """The reply in a chat completion's JSON; None if it is none. Servers differ, so every field is checked.

    A message without content is an empty text, as from a model that thought too long: it was paid for.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = text_of(message.get("content") or "") if isinstance(message, dict) else None
    if text is None:
        return None
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = (counts.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(text, tokens_in if isinstance(tokens_in, int) else 0, tokens_out if isinstance(tokens_out, int) else 0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as a date; None without the header."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
