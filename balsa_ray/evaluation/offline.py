"""Questions put to a model without a server, by Ray Data and vLLM: the bulk path.

The same messages, decoding and refusals as through an endpoint that serves the model, so the same answers. All tasks'
questions about a clip stand together, so that it is read, decoded and encoded once. Answers are stored as they come
out of the engine, up to some batches at a time; what a killed run has stored is not asked again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.chat_engine import as_served, named
from balsa_ray.checkpoints import configuration, fingerprint, resolve
from balsa_ray.cluster import session
from balsa_ray.config import UserError
from balsa_ray.engine import (
    SamplingConfig,
    chat_tokens,
    check_chat_template,
    failure,
    find_room,
    quiet_ray_data,
    vllm_chain,
)
from balsa_ray.evaluation.answers import AnswerFile
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.messages import Span, content_of, conversation, load_samples, load_span, request_key
from balsa_ray.evaluation.progress import Progress
from balsa_ray.evaluation.questions import Answer, Clip, Outcome, Question
from balsa_ray.identity import sampling_seed, stable_hash

if TYPE_CHECKING:
    from ray.data import Dataset

_READERS = 16  # threads that read recordings only to hash them


@dataclass
class _Request:
    """One request, whoever waits for its answer: the same question may stand in several tasks or splits."""

    key: str
    clips: list[Clip]
    messages: list[dict[str, Any]]
    askers: list[tuple[str, str]] = field(default_factory=list)
    """Task and id of the questions."""


def ask_model(plans: dict[str, list[Question]], config: BenchmarkConfig) -> tuple[dict[str, Outcome], dict[str, Any]]:
    """Answers what has no answer yet; if there is nothing to ask, neither Ray nor an engine is started.

    Returns:
        What came of each task, and what `scores.json` says of the model.

    Raises:
        UserError: If the model can't be used, Ray has too little room, or the engine can't be kept alive (exit code 1).
    """
    assert config.model
    path = resolve(config.model)
    known = configuration(path)
    hears = known.get("model_type") == "balsa"
    if config.modality == "audio" and not hears:
        raise UserError(f"model: {config.model} hears nothing (a {known.get('model_type')}): set modality=metadata")
    systems = [question.system for questions in plans.values() for question in questions if question.system]
    check_chat_template(path, next(iter(systems), None))
    card = {"name": config.model, "fingerprint": fingerprint(path), "weights_known": True, "dtype": config.engine.dtype}
    how = [card["fingerprint"], config.sampling.model_dump(), config.modality, config.engine.dtype]
    if config.sampling.temperature:
        how.append(config.seed)
    with AnswerFile(config.answers) as store:
        asking = _Asking(plans, config, store, stable_hash(*how))
        if asking.requests:
            print(f"benchmark: {len(asking.requests)} requests; the engine is starting, a minute or so", flush=True)
            with session():
                quiet_ray_data()
                asking.run(_chain(path, config, list(asking.requests.values()), known if hears else {}))
        return asking.outcomes(), card


def _chain(
    path: Path, config: BenchmarkConfig, requests: Sequence[_Request], balsa: dict[str, Any]
) -> Callable[["Dataset"], "Dataset"]:
    """Builds the chain for a balsa model of this configuration, or for a plain LLM, which has none."""
    arguments: dict[str, Any] = {"seed": config.seed}
    if balsa:
        arguments["limit_mm_per_prompt"] = {"audio": max(1, *(len(request.clips) for request in requests))}
    return vllm_chain(
        path,
        config.engine,
        find_room(config.engine, config.replicas),
        rows=len(requests),
        request=partial(_engine_row, path, config.sampling, config.seed),
        keep=["key"],
        arguments=arguments,
        remade=partial(as_served, partial(load_samples, max_seconds=balsa.get("max_audio_seconds", 0.0))),
    )


def _engine_row(path: Path, sampling: SamplingConfig, seed: int, row: dict[str, Any]) -> dict[str, Any]:
    """Returns what the engine reads of a row."""
    decoding = sampling.request_fields()
    if sampling.temperature:
        decoding["seed"] = sampling_seed(seed, row["key"])
    return {
        "tokenized_prompt": chat_tokens(path, json.loads(row["messages"])),
        "sampling_params": decoding,
        "clips": row["clips"],
    }


class _Asking:
    """The questions of all tasks on their way through an engine.

    Attributes:
        requests: What is to be asked, by key.
    """

    def __init__(self, plans: dict[str, list[Question]], config: BenchmarkConfig, store: AnswerFile, salt: str) -> None:
        self._plans, self._config, self._store, self._salt = plans, config, store, salt
        self._replies: dict[str, dict[str, str]] = {name: {} for name in plans}
        self._errors: dict[str, dict[str, str]] = {name: {} for name in plans}
        self._reused: dict[str, int] = dict.fromkeys(plans, 0)
        self.requests: dict[str, _Request] = {}
        self._plan()
        self._progress = Progress(", ".join(plans), sum(map(len, plans.values())))

    def _plan(self) -> None:
        """Finds out what has no answer yet."""
        groups: dict[tuple[str, ...], list[tuple[str, Question]]] = {}
        for name, questions in self._plans.items():
            for question in questions:
                groups.setdefault(question.cluster, []).append((name, question))
        together = [asked for group in groups.values() for asked in group]
        modality = self._config.modality
        clips = {content_of(clip, modality): clip for _, question in together for clip in question.clips}
        with ThreadPoolExecutor(_READERS) as readers:
            spans = dict(zip(clips, readers.map(self._span, clips.values()), strict=True))
        for name, question in together:
            found = [spans[content_of(clip, modality)] for clip in question.clips]
            if problems := [one for one in found if isinstance(one, str)]:
                self._errors[name][question.id] = problems[0]
                continue
            self._add(name, question, [one for one in found if isinstance(one, Span)])

    def _span(self, clip: Clip) -> Span | str:
        """Returns what stands for a clip, without its bytes, or why nothing can."""
        try:
            found = load_span(clip, self._config.modality, self._config.metadata)
        except (OSError, ValueError) as error:
            return str(error)
        return found if isinstance(found.content, str) else Span(found.key, {"type": "audio"})

    def _add(self, name: str, question: Question, spans: list[Span]) -> None:
        key = request_key(self._salt, [span.key for span in spans], question)
        reply = self._store.get(key)
        if reply is not None:
            self._replies[name][question.id] = reply
            self._reused[name] += 1
            return
        if key not in self.requests:
            clips = [] if self._config.modality == "metadata" else list(question.clips)
            self.requests[key] = _Request(key, clips, conversation(spans, question))
        self.requests[key].askers.append((name, question.id))

    def run(self, chain: Callable[["Dataset"], "Dataset"]) -> None:
        """Asks until every request is through. Engines that die for good are replaced as long as any answer came."""
        import ray
        from ray.exceptions import RayError

        while self.requests:
            before, cause = len(self.requests), None
            try:
                made = chain(ray.data.from_items(list(self._rows())))
                for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for row in batch.to_pylist():
                        self._take(json.loads(row["row"])["key"], row["response"], row["error"])
            except RayError as error:
                cause = error
            left = len(self.requests)
            reason = f"stopped: {failure(cause)}" if cause else f"{left} questions were lost"
            if left == before:
                raise UserError(f"benchmark: {reason}; the same command goes on", exit_code=1) from cause
            if left:
                print(f"benchmark: {reason}; going on with the {left} that are left", flush=True)

    def _rows(self) -> Iterator[dict[str, Any]]:
        heard = ("audio", "start", "duration")
        for request in self.requests.values():
            clips = [{name: clip[name] for name in heard if name in clip} for clip in request.clips]
            yield {"key": request.key, "messages": json.dumps(request.messages), "clips": named(clips)}

    def _take(self, key: str, response: str, error: str) -> None:
        request = self.requests.pop(key)
        if not error:
            self._store.add(key, response)
        for name, question in request.askers:
            if error:
                self._errors[name][question] = error
            else:
                self._replies[name][question] = response
        self._say()

    def _say(self, last: bool = False) -> None:
        errors = sum(map(len, self._errors.values()))
        done = errors + sum(map(len, self._replies.values()))
        self._progress.say(done, sum(self._reused.values()), errors, last=last)

    def outcomes(self) -> dict[str, Outcome]:
        """Returns what came of each task, and says so."""
        self._say(last=True)
        return {
            name: Outcome(
                [Answer(q, self._replies[name][q.id]) for q in questions if q.id in self._replies[name]],
                self._errors[name],
                self._reused[name],
            )
            for name, questions in self._plans.items()
        }
