"""The whole of a benchmark run: plan the questions, ask those without an answer, score.

What it promises: a killed run loses at most the replies under way, and the same command asks only what is missing; a
question that could not be answered is an error row, counted and named, and is tried again by the same command; the
scores depend on the replies alone, not on the order in which they came.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.endpoint import KEY_VARIABLE, Endpoint, QuestionError
from balsa_ray.evaluation import report
from balsa_ray.evaluation.answers import AnswerFile, audio_name, prediction, read_predictions, write_rows
from balsa_ray.evaluation.compare import compare
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.judge import judge
from balsa_ray.evaluation.messages import Span, content_of, conversation, load_span, request_key
from balsa_ray.evaluation.offline import ask_model
from balsa_ray.evaluation.progress import Progress
from balsa_ray.evaluation.questions import Answer, Clip, Outcome, Question
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import sampling_seed, stable_hash, unit


def benchmark(config: BenchmarkConfig, page: bool = True) -> dict[str, Any]:
    """Runs the benchmarks and returns the content of `OUTPUT/scores.json`, or of `compare.json`.

    Args:
        config: Of the run.
        page: Whether `report.html` is written too; its recordings take a minute or so.

    Raises:
        UserError: If the data, the predictions, the endpoint or the model can't be used; exit code 1 once questions
            were asked.
    """
    plans = _plans(config)
    if config.compare is not None:
        return compare(config, plans)
    model: dict[str, Any] | None
    if config.predictions is not None:
        name: str = config.tasks[0]
        outcomes = {name: _compare(read_predictions(config.predictions), plans.get(name))}
        model = None
    elif config.model is not None:
        outcomes, model = ask_model(plans, config)
    else:
        outcomes, model = asyncio.run(_ask_all(plans, config))
    if config.shard is not None:
        for name, outcome in outcomes.items():
            part = config.answers.name.removeprefix("answers").removesuffix(".jsonl")
            write_rows(config.output / name / f"errors{part}.jsonl", _error_rows(plans[name], outcome.errors))
        left = sum(len(outcome.errors) for outcome in outcomes.values())
        print(f"part {config.shard}: all asked, {left} without an answer; shard=null scores all parts")
        return {}
    questions = {name: plans.get(name) or [a.question for a in outcome.answers] for name, outcome in outcomes.items()}
    judged_by = asyncio.run(judge(outcomes, config)) if config.judge else None
    for name, outcome in outcomes.items():
        _write(config, name, questions[name], outcome)
    scores = {
        name: report.task_scores(name, questions[name], outcome, config) | {"model": model, "judge": judged_by}
        for name, outcome in outcomes.items()
    }
    report.write(config.output, scores, outcomes, page)
    for number, what in (
        (sum(len(outcome.errors) for outcome in outcomes.values()), "questions have no answer"),
        (sum(len(outcome.unjudged) for outcome in outcomes.values()), "answers have no judgement"),
    ):
        if number:
            print(f"{number} {what}: see {config.output}/*/errors.jsonl; the same command tries them again")
    causes = Counter(cause for outcome in outcomes.values() for cause in outcome.errors.values())
    if causes:
        cause, number = causes.most_common(1)[0]
        print(f"the most frequent cause, {number} times: {cause}")
    if causes and not any(outcome.answers for outcome in outcomes.values()):
        raise UserError("benchmark: nothing was answered, and so nothing scored", exit_code=1)
    for name, outcome in outcomes.items():
        if outcome.mismatched:
            print(f"{name}: {len(outcome.mismatched)} predictions are of other questions (`mismatched` in scores.json)")
    return scores


def _plans(config: BenchmarkConfig) -> dict[str, list[Question]]:
    """Returns the questions of each task; none without a manifest."""
    if config.data_root is None:
        return {}
    read = cache(lambda reader, path: reader(path))  # tasks that are made from one manifest read it once
    plans: dict[str, list[Question]] = {}
    for name in config.tasks:
        task, path = TASKS[name], config.data_of(name)
        plans[name] = task.plan(read(task.read, path), config.seed, **config.settings(name))
        if not plans[name]:
            raise UserError(f"data_root: {path}: has nothing to make {name} from ({task.NEEDS})")
    return {name: _part(_limited(questions, config), config) for name, questions in plans.items()}


def _limited(questions: list[Question], config: BenchmarkConfig) -> list[Question]:
    """Keeps the questions about `limit` clips (or pairs of clips): a larger limit keeps these and adds others."""
    if config.limit is None:
        return questions
    clusters = sorted({q.cluster for q in questions}, key=lambda cluster: unit(config.seed, "limit", *cluster))
    kept = set(clusters[: config.limit])
    return [question for question in questions if question.cluster in kept]


def _part(questions: list[Question], config: BenchmarkConfig) -> list[Question]:
    """Keeps the questions of this shard: all those about a clip are in the same one."""
    part, parts = config.part
    if parts == 1:
        return questions
    return [q for q in questions if int(unit(config.seed, "shard", *q.cluster) * parts) == part]


def _compare(answers: list[Answer], plan: list[Question] | None) -> Outcome:
    """Holds a predictions file against the plan, if there is one: what doesn't fit is named, never guessed."""
    if plan is None:
        return Outcome(answers)
    given = {answer.question.id: answer for answer in answers}
    planned = {question.id for question in plan}
    found = [question for question in plan if question.id in given]
    same = [question for question in found if question.is_same(given[question.id].question)]
    outcome = Outcome(
        [_planned(question, given[question.id]) for question in same],
        missing=[question.id for question in plan if question.id not in given],
        extra=[name for name in given if name not in planned],
        mismatched=sorted({question.id for question in found} - {question.id for question in same}),
    )
    if not outcome.answers:
        told = (
            "none of the ids is one" if not found else "the ids are those, but recordings or right answers aren't those"
        )
        raise UserError(f"predictions: {told} of this plan's: another benchmark, manifest, seed or settings")
    return outcome


def _planned(question: Question, answer: Answer) -> Answer:
    """Returns a file's answer with the plan's question; other columns of the file are kept."""
    return replace(answer, question=replace(question, extra=answer.question.extra | question.extra))


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
        with AnswerFile(config.answers) as store:
            for name, questions in plans.items():
                asking = _Asking(name, questions, endpoint, store, config, model["fingerprint"])
                outcomes[name] = await asking.run()
    return outcomes, model


def _write(config: BenchmarkConfig, name: str, questions: Sequence[Question], outcome: Outcome) -> None:
    folder = config.output / name
    file = folder / "predictions.jsonl"
    if config.predictions is None or not (file.exists() and file.samefile(config.predictions)):
        write_rows(file, (prediction(TASKS[name], answer) for answer in outcome.answers))
    errors = outcome.errors | outcome.unjudged
    if config.predictions is None or errors:  # the file may be of this folder: its errors are not ours
        write_rows(folder / "errors.jsonl", _error_rows(questions, errors))


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
        self._questions, self._endpoint, self._store, self._config = questions, endpoint, store, config
        # As without a server: of replies that are drawn each seed has its own.
        self._seed = config.seed if config.sampling.temperature else None
        drawn = [] if self._seed is None else [self._seed]
        self._salt = stable_hash(fingerprint, config.sampling.model_dump(), config.modality, *drawn)
        self._waiting: dict[str, list[Question]] = {}
        self._replies: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._reused = 0
        self._free = asyncio.Semaphore(config.concurrency)
        self._progress = Progress(name, len(questions))

    async def run(self) -> Outcome:
        """Asks what has no answer yet. A clip is read once for all questions about it."""
        try:
            async with asyncio.TaskGroup() as requests:
                groups: dict[tuple[str, ...], list[Question]] = {}
                for question in self._questions:
                    groups.setdefault(question.cluster, []).append(question)
                for group in groups.values():
                    await self._ask_about_clips(group, requests)
        except* UserError as group:
            # The first is as good as any: every request under way fails for the same reason.
            raise group.exceptions[0] from None
        self._say(last=True)
        answers = [Answer(q, self._replies[q.id]) for q in self._questions if q.id in self._replies]
        return Outcome(answers, self._errors, self._reused)

    async def _ask_about_clips(self, questions: list[Question], requests: asyncio.TaskGroup) -> None:
        """Starts the requests about one group of clips; equal requests (a label in two splits) are sent once."""
        known: dict[Any, Span | str] = {}
        wanted: dict[str, list[Span]] = {}
        for question in questions:
            found = [await self._span(clip, known) for clip in question.clips]
            if problems := [one for one in found if isinstance(one, str)]:
                self._errors[question.id] = problems[0]
                continue
            spans = [one for one in found if isinstance(one, Span)]
            key = request_key(self._salt, [span.key for span in spans], question)
            reply = self._store.get(key)
            if reply is not None:
                self._replies[question.id] = reply
                self._reused += 1
            elif key in self._waiting:  # it is asked already
                self._waiting[key].append(question)
            else:
                self._waiting[key] = [question]
                wanted[key] = spans
        for key, spans in wanted.items():
            await self._free.acquire()
            requests.create_task(self._ask(key, conversation(spans, self._waiting[key][0])))

    async def _span(self, clip: Clip, known: dict[Any, Span | str]) -> Span | str:
        """Returns what stands for a clip, or why nothing can; each is read once."""
        content = content_of(clip, self._config.modality)
        if content not in known:
            try:
                known[content] = await asyncio.to_thread(load_span, clip, self._config.modality, self._config.metadata)
            except (OSError, ValueError) as error:
                known[content] = str(error)
        return known[content]

    async def _ask(self, key: str, messages: list[dict[str, Any]]) -> None:
        seed = {} if self._seed is None else {"seed": sampling_seed(self._seed, key)}
        try:
            reply = (await self._endpoint.ask(messages, **seed)).response
        except QuestionError as error:
            self._errors |= {question.id: str(error) for question in self._waiting.pop(key)}
        else:
            self._store.add(key, reply)
            self._replies |= {question.id: reply for question in self._waiting.pop(key)}
        finally:
            self._free.release()
        self._say()

    def _say(self, last: bool = False) -> None:
        done = len(self._replies) + len(self._errors)
        self._progress.say(done, self._reused, len(self._errors), last=last)
