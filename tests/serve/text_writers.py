"""Writers for tests of the text policy: by script, and badly."""

import random
import string

from la4vla.rng import name_id
from la4vla.serve.text.writer import WriterAnswer

SUBTASKS = "['move right', 'push down']"
ACTIONS = "[[0.0, -0.05, 0.0, 0.0], [0.0, 0.0, -0.03, 0.0]]"


def asked(prompt):
    """(task, episode, query, question, attempt) of a prompt."""
    _, task, episode, query, question, attempt = prompt.key.split("/")
    return task, int(episode), int(query), question, int(attempt)


class Scripted:
    """answer: prompt -> text. Remembers the prompts, batch by batch, with how they were to be answered."""

    def __init__(self, answer=None):
        self.answer = answer or usual
        self.batches = []

    def write(self, prompts, sampling, top_p):
        self.batches.append((prompts, sampling, top_p))
        answers = [self.answer(prompt) for prompt in prompts]
        return [given if isinstance(given, WriterAnswer) else WriterAnswer(given) for given in answers]

    @property
    def questions(self):
        return [asked(prompt)[3] for prompts, _, _ in self.batches for prompt in prompts]


def usual(prompt):
    question = asked(prompt)[3]
    return {"subtasks": SUBTASKS, "plan": "Primarily right (-dy).", "completion": "yes"}.get(question, ACTIONS)


class Mangling:
    """The usual answers with letters lost, doubled, replaced and cut off; of a prompt always the same."""

    def __init__(self, usual, letters=""):
        self.usual, self.letters = usual, string.printable + "\u00e9\u4e00\x00\ud800\U0001f916" + letters
        self.answers = 0

    def write(self, prompts, sampling, top_p):
        self.answers += len(prompts)
        return [WriterAnswer(self.mangled(prompt)) for prompt in prompts]

    def mangled(self, prompt):
        draws, text = random.Random(name_id(prompt.key)), self.usual(prompt)
        for _ in range(draws.randrange(4)):
            at, other = draws.randrange(len(text) + 1), draws.randrange(len(text) + 1)
            some = "".join(draws.choices(self.letters, k=draws.randrange(4)))
            text = draws.choice(
                [text[:at], text[:at] + some + text[at:], text[:at] + text[other:], some, text + text * 3, ""]
            )
        return text
