"""A judge: a language model that reads replies which no parser can score.

Its replies are stored like answers, keyed by who judged and what it was asked, so that no judgement is asked for twice.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.endpoint import Endpoint, QuestionError
from balsa_ray.evaluation.answers import AnswerFile
from balsa_ray.evaluation.config import BenchmarkConfig, JudgeConfig
from balsa_ray.evaluation.progress import Progress
from balsa_ray.evaluation.questions import Outcome
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import stable_hash

KEY_VARIABLE = "BALSA_JUDGE_API_KEY"


async def judge(outcomes: dict[str, Outcome], config: BenchmarkConfig) -> dict[str, Any]:
    """Has every answer judged that its task wants judged, and returns what `scores.json` says of the judge.

    An answer that the judge refuses stays without a judgement: it is counted, and tried again next time.

    Raises:
        UserError: If nobody answers at the judge's endpoint, or the key is refused.
    """
    assert config.judge
    try:
        return await _judge(outcomes, config, config.judge)
    except UserError as error:
        raise UserError(f"judge: {error}", error.exit_code) from error


async def _judge(outcomes: dict[str, Outcome], config: BenchmarkConfig, by: JudgeConfig) -> dict[str, Any]:
    async with Endpoint(
        by.endpoint,
        key=os.environ.get(KEY_VARIABLE),
        name=by.name,
        sampling=by.sampling.request_fields(),
        concurrency=by.concurrency,
        attempts=config.attempts,
        timeout_s=config.timeout_s,
        key_variable=KEY_VARIABLE,
    ) as endpoint:
        card = await endpoint.find_model()
        with AnswerFile(config.output / "judgements.jsonl") as store:
            for name, outcome in outcomes.items():
                await _Judging(name, by, endpoint, store, card["fingerprint"]).run(outcome)
    return card


class _Judging:
    """One task's answers on their way through the judge."""

    def __init__(self, name: str, config: JudgeConfig, endpoint: Endpoint, store: AnswerFile, fingerprint: str) -> None:
        self._name, self._endpoint, self._store = name, endpoint, store
        self._salt = stable_hash(fingerprint, config.sampling.model_dump())
        self._free = asyncio.Semaphore(config.concurrency)

    async def run(self, outcome: Outcome) -> None:
        """Puts judgements into the outcome's answers."""
        prompts = [TASKS[self._name].judge_prompt(answer) for answer in outcome.answers]
        asked = {prompt for prompt in prompts if prompt is not None}
        if not asked:
            return
        found, problems = await self._replies(sorted(asked))
        answers = []
        for answer, prompt in zip(outcome.answers, prompts, strict=True):
            if prompt in problems:
                outcome.unjudged[answer.question.id] = f"judge: {problems[prompt]}"
            answers.append(answer if prompt is None else replace(answer, judgement=found.get(prompt)))
        outcome.answers = answers

    async def _replies(self, prompts: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Returns what was said to each prompt, and why nothing was."""
        found, problems = {}, {}
        progress = Progress(f"{self._name}, judge", len(prompts))

        async def ask(prompt: str, key: str) -> None:
            try:
                found[prompt] = (await self._endpoint.ask([{"role": "user", "content": prompt}])).response
                self._store.add(key, found[prompt])
            except QuestionError as error:
                problems[prompt] = str(error)
            finally:
                self._free.release()
            progress.say(len(found) + len(problems), reused, len(problems))

        reused = 0
        try:
            async with asyncio.TaskGroup() as requests:
                for prompt in prompts:
                    key = stable_hash(self._salt, prompt, length=32)
                    known = self._store.get(key)
                    if known is not None:
                        found[prompt], reused = known, reused + 1
                        continue
                    await self._free.acquire()
                    requests.create_task(ask(prompt, key))
        except* UserError as group:
            raise group.exceptions[0] from None
        progress.say(len(found) + len(problems), reused, len(problems), last=True)
        return found, problems
