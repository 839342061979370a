"""An endpoint inside Ray Data: the chain of `engine.vllm_chain`, with replies from any OpenAI-compatible URL.

Ray Data's own `HttpRequestProcessorConfig` is not used: it sends the requests of a batch one after another, and a
request that is refused, or whose reply is not JSON, ends the run.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from balsa_ray.config import Config
from balsa_ray.endpoint import Endpoint, QuestionError
from balsa_ray.engine import Row, rows_per_block

if TYPE_CHECKING:
    from ray.data import Dataset

_BATCH = 64


class EndpointConfig(Config):
    """An OpenAI-compatible endpoint in place of vLLM; its key is the environment variable BALSA_API_KEY."""

    url: str = Field(description="base URL, for example http://host:8000/v1")
    name: str | None = Field(None, description="model to ask; null: the only one that the endpoint has")
    requests_at_once: int = Field(64, ge=1, description="requests that are on their way at once")
    requests_per_second: float | None = Field(None, gt=0, description="most requests a second; null: no limit")
    attempts: int = Field(6, ge=1, description="tries of a request, with growing pauses")
    timeout_s: float = Field(300.0, gt=0, description="longest time for one try in seconds")


def client(config: EndpointConfig, key: str | None, sampling: dict[str, Any]) -> Endpoint:
    """Returns a client of the endpoint.

    Args:
        config: The endpoint.
        key: Bearer token, or None.
        sampling: Fields of every request.
    """
    return Endpoint(
        config.url,
        key=key,
        name=config.name,
        sampling=sampling,
        concurrency=config.requests_at_once,
        attempts=config.attempts,
        timeout_s=config.timeout_s,
        rate=config.requests_per_second,
    )


def endpoint_chain(
    config: EndpointConfig,
    key: str | None,
    sampling: dict[str, Any],
    light: dict[str, Any],
    *,
    rows: int,
    request: Callable[[Row], Row],
) -> Callable[["Dataset"], "Dataset"]:
    """Builds the chain: a row becomes a conversation, the endpoint answers it, the reply is joined to the row.

    One actor asks everything, so that the limits hold for the run as a whole.

    Args:
        config: The endpoint.
        key: Bearer token, or None.
        sampling: Fields of every request.
        light: Ray's arguments for a small task.
        rows: How many there are, about.
        request: From a row to `messages` and the `fields` of its request alone.

    Returns:
        As `engine.vllm_chain`; a question that the endpoint refuses carries the reason in `error`.
    """
    from ray.data import ActorPoolStrategy

    def prepare(row: Row) -> Row:
        return {"row": json.dumps(row), "request": json.dumps(request(row))}

    batches = -(-config.requests_at_once // _BATCH) + 1

    per_block = rows_per_block(rows, _BATCH)

    def chain(dataset: "Dataset") -> "Dataset":
        requests = dataset.repartition(target_num_rows_per_block=per_block).map(prepare, **light)
        return requests.map_batches(
            _Asker,
            fn_constructor_args=(config, key, sampling),
            batch_size=_BATCH,
            num_cpus=light["num_cpus"],
            max_concurrency=batches,
            compute=ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=batches),
        )

    return chain


class _Asker:
    """Ray Data calls this in one event loop, with several batches at once."""

    def __init__(self, config: EndpointConfig, key: str | None, sampling: dict[str, Any]) -> None:
        self._client = client(config, key, sampling)
        self._free = asyncio.Semaphore(config.requests_at_once)
        self._opening: asyncio.Task[Endpoint] | None = None

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._client.__aenter__())
        await asyncio.shield(self._opening)
        asked = [self._ask(json.loads(request)) for request in batch["request"]]
        replies = await asyncio.gather(*asked)
        yield {"row": batch["row"], **{name: [reply[name] for reply in replies] for name in replies[0]}}

    async def _ask(self, request: Row) -> Row:
        row: Row = {"response": "", "prompt_tokens": 0, "response_tokens": 0, "finish_reason": "stop", "error": ""}
        try:
            async with self._free:
                return row | vars(await self._client.ask(request["messages"], **request["fields"]))
        except QuestionError as error:
            return row | {"error": str(error)}
