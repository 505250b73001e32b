"""The VLM proposer: a vision-language model cuts an episode and names the parts (paper 7.4, FACTS 1.3.4).

Owns the conversation: ask, read the answer, say what is wrong with it and ask again. The prompt is prompt's, the server
endpoint's, the reading answer's; replies are kept by responses, so an episode that was asked about costs nothing again.
A conversation in which no answer was usable is forgotten, or its replies would fail the episode for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from la4vla.chat.endpoint import Endpoint, Refused
from la4vla.chat.responses import Responses, request_name
from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose import prompt
from la4vla.construct.propose.candidates import ProposerResult
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.parse_answer import read_answer

VERSION = 2
"""Counts changes of what the same answer becomes; the prompt's own changes are seen without it."""

CACHE = "vlm_cache"
"""The folder of the replies, in out_dir."""


class Vlm:
    """A Proposer. What is answered already needs no endpoint, key or openai client."""

    name = "vlm"

    def __init__(self, config: ConstructConfig) -> None:
        self._config = config
        self._endpoint: Endpoint | None = None
        self._opening = Lock()
        self._responses = Responses(Path(config.out_dir) / CACHE)

    @property
    def version(self) -> str:
        return version(self._config)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        """Raises UserError if the endpoint cannot be used, or not any more."""
        config = self._config
        messages = prompt.messages(episode, keyframes, config.vlm)
        problems: list[str] = []
        names: list[str] = []
        tokens_in = tokens_out = calls = 0
        for _ in range(config.vlm.attempts):
            request = _request(messages, config)
            names.append(request_name(request))
            reply = self._responses.get(names[-1])
            if reply is None:
                try:
                    reply, tries = self._opened().ask(request)
                except Refused as error:
                    self._responses.forget(names[:-1])
                    return ProposerResult((), (), tokens_in, tokens_out, calls + 1, failed=str(error))
                self._responses.put(names[-1], reply)
                tokens_in, tokens_out, calls = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out, calls + tries
            proposals, problems = read_answer(
                reply.text, episode, config.propose.min_clip_frames, config.judge.slack_frames
            )
            if proposals:
                return ProposerResult(tuple(proposals), tuple(problems), tokens_in, tokens_out, calls)
            messages = messages + prompt.again(reply.text, problems, len(episode), episode.fps)
        self._responses.forget(names)
        failed = f"{config.vlm.attempts} answers, none usable; the last one: {' '.join(problems)}"
        return ProposerResult((), tuple(problems), tokens_in, tokens_out, calls, failed)

    def _opened(self) -> Endpoint:
        """One for all threads, as it holds their rate limit. Raises UserError without address, key or client."""
        with self._opening:
            self._endpoint = self._endpoint or Endpoint(self._config.vlm)
            return self._endpoint


def version(config: ConstructConfig) -> str:
    """Of the proposals that these settings give. The server, its pace and its prices do not count."""
    vlm = config.vlm
    shown = (vlm.fps, vlm.width, vlm.height, vlm.frames_as)
    read = (config.propose.min_clip_frames, config.judge.slack_frames)
    return digest(
        "vlm", VERSION, prompt.system_text(), prompt.SCHEMA, vlm.model, vlm.temperature, vlm.answer_format, shown, read
    )


def _request(messages: Sequence[prompt.Message], config: ConstructConfig) -> dict[str, Any]:
    """Of the chat-completions protocol; all that the answer depends on."""
    schema = {"name": "segments", "schema": prompt.SCHEMA, "strict": True}
    formats = {
        "json_schema": {"type": "json_schema", "json_schema": schema},
        "json_object": {"type": "json_object"},
        "text": {"type": "text"},
    }
    return {
        "model": config.vlm.model,
        "messages": list(messages),
        "temperature": config.vlm.temperature,
        "response_format": formats[config.vlm.answer_format],
    }
