"""What a benchmark asks, and what came back: the records that tasks, runner and metrics share."""

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

Clip = dict[str, Any]
"""A row of a manifest: `id`, `audio`, optional `start`, `duration`, `tags`, `events`, `caption`."""


@dataclass(frozen=True)
class Question:
    """One question about one or more clips.

    Attributes:
        id: Stable name: the same question about the same clips has the same id in every run.
        split: The part of the benchmark that it counts in, such as `random` or `adversarial`.
        clips: The clips in the order in which the prompt speaks of them.
        prompt: The words of the user turn.
        reference: The right answer: a text, or a list of labels.
        object: The sound event that is asked for; empty if none is.
        choices: The labels or options that a reply may name, where the parser needs them.
        system: The words of a system turn; empty: there is none.
        extra: What else the task's scorers read; columns of the predictions.
        also: Further splits that it counts in, such as `all`.
    """

    id: str
    split: str
    clips: tuple[Clip, ...]
    prompt: str
    reference: str | list[str]
    object: str = ""
    choices: tuple[str, ...] = ()
    system: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def is_same(self, other: "Question") -> bool:
        """Whether another one is about recordings of the same names and has the same right answer.

        Ids alone say little: many sets number their questions from 0, and releases revise some. Words may differ, as
        runs put sentences before them.
        """
        return (
            _folded(self.reference) == _folded(other.reference)
            and len(self.clips) == len(other.clips)
            and all(not _names(one).isdisjoint(_names(its)) for one, its in zip(self.clips, other.clips, strict=True))
        )

    @property
    def cluster(self) -> tuple[str, ...]:
        """The clips, whatever their order: answers about the same clips are not independent."""
        return tuple(sorted(str(clip["id"]) for clip in self.clips))


def _folded(reference: str | list[str]) -> str | list[str]:
    return reference.strip().lower() if isinstance(reference, str) else sorted(reference)


def _names(clip: Clip) -> set[str]:
    """Returns what a clip may be called: its id and its file, without folders and ending."""
    audio = clip["audio"]
    file = audio.get("path") or "" if isinstance(audio, dict) else audio
    return {PurePath(str(name).replace("\\", "/")).stem for name in (clip["id"], file) if name}


@dataclass(frozen=True)
class Answer:
    """A question and the reply to it.

    Attributes:
        question: What was asked.
        response: The model's reply, word for word.
        judgement: What a judge said of it; None: no judge was asked.
    """

    question: Question
    response: str
    judgement: str | None = None


@dataclass
class Outcome:
    """What came of a task's questions.

    Attributes:
        answers: The answered questions, in the order of the plan.
        errors: Questions without an answer, by id, with the reason.
        reused: How many answers were there before.
        missing: Ids that a predictions file should have and doesn't.
        extra: Ids that it has and should not.
        mismatched: Ids that it has for another question.
        unjudged: Answers that the judge refused, by id, with the reason.
    """

    answers: list[Answer] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unjudged: dict[str, str] = field(default_factory=dict)
