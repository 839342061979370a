"""The whole of a benchmark run: plan the questions, ask those without an answer, score.

What it promises: a killed run loses at most the replies under way, and the same command asks only what is missing; a
question that could not be answered is an error row, counted and named, and is tried again by the same command; the
scores depend on the replies alone, not on the order in which they came.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.endpoint import KEY_VARIABLE, Endpoint, QuestionError
from balsa_ray.evaluation import report
from balsa_ray.evaluation.answers import AnswerFile, audio_name, prediction, read_predictions, write_rows
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.messages import Span, load_span, user_message
from balsa_ray.evaluation.questions import Answer, Clip, Question
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import stable_hash, unit
from balsa_ray.schema import read_manifest

_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Outcome:
    """What came of a task's questions.

    Attributes:
        answers: The answered questions, in the order of the plan.
        errors: Questions without an answer, by id, with the reason.
        reused: How many answers were there before.
        missing: Ids that a predictions file should have and doesn't.
        extra: Ids that it has and should not.
    """

    answers: list[Answer] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Runs the benchmarks and returns the content of `OUTPUT/scores.json`.

    Raises:
        UserError: If the data, the predictions or the endpoint can't be used; exit code 1 once questions were asked.
    """
    plans = _plans(config)
    model: dict[str, Any] | None
    if config.predictions is not None:
        name: str = config.tasks[0]
        outcomes = {name: _compare(read_predictions(config.predictions), plans.get(name))}
        model = None
    else:
        outcomes, model = asyncio.run(_ask_all(plans, config))
    scores = {
        name: report.task_scores(name, outcome.answers, list(outcome.errors), config)
        | {"missing": outcome.missing, "extra": outcome.extra, "model": model}
        for name, outcome in outcomes.items()
    }
    report.write(config.output, scores)
    failed = sum(len(outcome.errors) for outcome in outcomes.values())
    if failed:
        print(
            f"{failed} questions have no answer: see {config.output}/*/errors.jsonl; the same command tries them again"
        )
    return scores


def _plans(config: BenchmarkConfig) -> dict[str, list[Question]]:
    """Returns the questions of each task; none without a manifest."""
    if config.data_root is None:
        return {}
    clips = read_manifest(config.data_root)
    plans: dict[str, list[Question]] = {
        name: TASKS[name].plan(clips, config.seed, **config.settings(name)) for name in config.tasks
    }
    for name, questions in plans.items():
        if not questions:
            raise UserError(f"data_root: {config.data_root}: has no labels (tags or events) to make {name} from")
    return {name: _limited(questions, config) for name, questions in plans.items()}


def _limited(questions: list[Question], config: BenchmarkConfig) -> list[Question]:
    """Keeps the questions about `limit` clips (or pairs of clips): a larger limit keeps these and adds others."""
    if config.limit is None:
        return questions
    clusters = sorted({q.cluster for q in questions}, key=lambda cluster: unit(config.seed, "limit", *cluster))
    kept = set(clusters[: config.limit])
    return [question for question in questions if question.cluster in kept]


def _compare(answers: list[Answer], plan: list[Question] | None) -> Outcome:
    """Holds a predictions file against the plan, if there is one: missing and extra ids are named, never guessed."""
    if plan is None:
        return Outcome(answers)
    given = {answer.question.id: answer for answer in answers}
    planned = {question.id for question in plan}
    outcome = Outcome(
        [Answer(question, given[question.id].response, given[question.id].extra) for question in plan
         if question.id in given],
        missing=[question.id for question in plan if question.id not in given],
        extra=[name for name in given if name not in planned],
    )  # fmt: skip
    if not outcome.answers:
        raise UserError("predictions: none of the ids is one of this plan's: another manifest, seed or settings")
    return outcome


async def _ask_all(
    plans: dict[str, list[Question]], config: BenchmarkConfig
) -> tuple[dict[str, Outcome], dict[str, Any]]:
    outcomes = {}
    async with Endpoint(
        config.endpoint or "",
        key=os.environ.get(KEY_VARIABLE),
        name=config.name,
        sampling=config.sampling.request_fields(),
        concurrency=config.concurrency,
        attempts=config.attempts,
        timeout_s=config.timeout_s,
    ) as endpoint:
        model = await endpoint.find_model()
        with AnswerFile(config.output / "answers.jsonl") as store:
            for name, questions in plans.items():
                asking = _Asking(name, questions, endpoint, store, config, model["fingerprint"])
                outcomes[name] = await asking.run()
                folder = config.output / name
                write_rows(folder / "predictions.jsonl", (prediction(TASKS[name], a) for a in outcomes[name].answers))
                write_rows(folder / "errors.jsonl", _error_rows(questions, outcomes[name].errors))
    return outcomes, model


def _error_rows(questions: Sequence[Question], errors: dict[str, str]) -> Iterator[dict[str, Any]]:
    for q in questions:
        if q.id in errors:
            audio = [audio_name(clip) for clip in q.clips]
            yield {"id": q.id, "split": q.split, "audio": audio, "prompt": q.prompt, "error": errors[q.id]}


class _Asking:
    """One task's questions on their way through an endpoint."""

    def __init__(
        self,
        name: str,
        questions: list[Question],
        endpoint: Endpoint,
        store: AnswerFile,
        config: BenchmarkConfig,
        fingerprint: str,
    ) -> None:
        self._name, self._questions, self._endpoint, self._store, self._config = (
            name,
            questions,
            endpoint,
            store,
            config,
        )
        self._salt = stable_hash(fingerprint, config.sampling.model_dump(), config.modality)
        self._replies: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._reused = 0
        self._free = asyncio.Semaphore(config.concurrency)
        self._began = self._said = time.monotonic()

    async def run(self) -> Outcome:
        """Asks what has no answer yet. A clip is read once for all questions about it."""
        try:
            async with asyncio.TaskGroup() as requests:
                for _, group in groupby(self._questions, key=lambda question: question.cluster):
                    await self._ask_about_clips(list(group), requests)
        except* UserError as group:
            # The first is as good as any: every request under way fails for the same reason.
            raise group.exceptions[0] from None
        self._say(last=True)
        answers = [Answer(q, self._replies[q.id]) for q in self._questions if q.id in self._replies]
        return Outcome(answers, self._errors, self._reused)

    async def _ask_about_clips(self, questions: list[Question], requests: asyncio.TaskGroup) -> None:
        """Starts the requests about one group of clips; equal requests (a label in two splits) are sent once."""
        spans: dict[Any, Span] = {}
        try:
            for clip in questions[0].clips:
                spans[clip["id"]] = await asyncio.to_thread(self._load, clip)
        except (OSError, ValueError) as error:
            self._errors |= {question.id: str(error) for question in questions}
            return
        same: dict[str, list[Question]] = {}
        for question in questions:
            key = stable_hash(self._salt, [spans[c["id"]].key for c in question.clips], question.prompt, length=32)
            reply = self._store.get(key)
            if reply is None:
                same.setdefault(key, []).append(question)
            else:
                self._replies[question.id] = reply
                self._reused += 1
        for key, askers in same.items():
            await self._free.acquire()
            message = user_message([spans[clip["id"]] for clip in askers[0].clips], askers[0].prompt)
            requests.create_task(self._ask(key, askers, message))

    def _load(self, clip: Clip) -> Span:
        return load_span(clip, self._config.modality, self._config.metadata)

    async def _ask(self, key: str, askers: list[Question], message: dict[str, Any]) -> None:
        try:
            reply = (await self._endpoint.ask([message])).response
        except QuestionError as error:
            self._errors |= {question.id: str(error) for question in askers}
        else:
            self._store.add(key, reply)
            self._replies |= {question.id: reply for question in askers}
        finally:
            self._free.release()
        if time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._say()

    def _say(self, last: bool = False) -> None:
        self._said = time.monotonic()
        done, total = len(self._replies) + len(self._errors), len(self._questions)
        fresh, seconds = done - self._reused, self._said - self._began
        line = f"{self._name}: {done}/{total} answered"
        line += f", {self._reused} of them known already" if self._reused else ""
        line += f", {fresh / seconds:.1f}/s" if fresh else ""
        line += f", {len(self._errors)} errors" if self._errors else ""
        line += f", about {(total - done) * seconds / fresh:.0f} s left" if fresh and not last else ""
        print(line, flush=True)
