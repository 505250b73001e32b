"""The VLM proposer: a vision-language model cuts an episode and names the parts (paper 7.4, FACTS 1.3.4).

`chat` holds the conversation, `prompt` has its words, `parse_answer` makes proposals of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from la4vla.chat.conversation import AnswerFormat, Conversations, Message
from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose import prompt
from la4vla.construct.propose.candidates import Proposal, ProposerResult
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.parse_answer import read_answer

VERSION = 2
"""Raised when the same answer would become other proposals; `version` notices a change of the prompt by itself, except
of what only robots with two arms are told."""

CACHE = "vlm_cache"
"""The folder of the replies, in out_dir."""


class Vlm:
    """A Proposer. An episode whose answer is in the cache needs no endpoint, key or openai client."""

    name = "vlm"

    def __init__(self, config: ConstructConfig) -> None:
        self._config = config
        self._conversations = Conversations(config.vlm, Path(config.out_dir) / CACHE)

    @property
    def version(self) -> str:
        return version(self._config)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        """Raises UserError if the endpoint cannot be used, or not any more."""
        config = self._config

        def read(text: str) -> tuple[list[Proposal] | None, list[str]]:
            least, slack = config.propose.min_clip_frames, config.judge.slack_frames
            proposals, problems = read_answer(text, episode, least, slack)
            return proposals or None, problems

        def again(text: str, problems: Sequence[str]) -> list[Message]:
            return prompt.again(text, problems, len(episode), episode.fps)

        messages = prompt.messages(episode, keyframes, config.vlm)
        outcome = self._conversations.hold(messages, AnswerFormat("segments", prompt.SCHEMA), read, again)
        return ProposerResult(
            tuple(outcome.answer or ()),
            outcome.problems,
            outcome.tokens_in,
            outcome.tokens_out,
            outcome.calls,
            outcome.failed,
        )


def version(config: ConstructConfig) -> str:
    """Changes whenever the same episodes may get other proposals. The server, its pace and its prices do not count."""
    vlm = config.vlm
    shown = (vlm.fps, vlm.width, vlm.height, vlm.frames_as)
    read = (config.propose.min_clip_frames, config.judge.slack_frames)
    return digest(
        "vlm", VERSION, prompt.system_text(), prompt.SCHEMA, vlm.model, vlm.temperature, vlm.answer_format, shown, read
    )
