"""What runs in a replica: vLLM's engine, and in those of the first model the endpoint before it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Rids a request of pydantic's lazy iterators, which can't be sent to another process.
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request as _as_data

# The class that RAYLLM_VLLM_ENGINE_CLS replaces; not exported by ray.serve.llm.
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, LLMServer
from ray.util.metrics import Counter
from vllm import envs

from balsa_ray.serving.ingress import Card, Engine, HttpSettings, http_app
from balsa_ray.vllm_plugin import media
from balsa_ray.vllm_plugin.register import AUDIO_HOSTS, check_registered

if TYPE_CHECKING:
    from fastapi import FastAPI


class Endpoint(LLMServer):
    """The engine of the first model, and the HTTP side of all of them.

    A request for its own model takes no further hop: a body of audio is large, and each process that it passes costs
    as much as the answer of a small model.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it, as that of the class above
        self,
        llm_config: LLMConfig,
        others: Mapping[str, DeploymentHandle],
        cards: Sequence[Card],
        settings: HttpSettings,
    ) -> None:
        self._engines: dict[str, Engine] = {llm_config.model_id: self}
        self._engines |= {name: _Distant(handle) for name, handle in others.items()}
        self._cards, self._settings = cards, settings
        await super().__init__(llm_config)

    async def __serve_build_asgi_app__(self) -> "FastAPI":
        """Ray Serve calls it when the engine is up, and hands on to what it returns."""
        return http_app(self._engines, self._cards, self._settings)


class _Distant:
    """An engine in another replica."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options(stream=True)
        self._health = handle

    async def chat(self, body: Any, info: Any) -> AsyncIterator[Any]:
        """Hands a chat on."""
        return self._handle.chat.remote(_as_data(body), info)

    async def check_health(self) -> None:
        """Asks there."""
        await self._health.check_health.remote()


class LocalEngine(VLLMEngine):
    """vLLM's engine for a model directory, without two processes that Ray Serve LLM would add.

    Each one spared is one import of vLLM: 8 s of CPU and 0.5 GB.
    """

    async def start(self) -> None:
        """Starts the engine, without the task that would download the model: the path was resolved before."""
        check_registered()
        media.listeners.append(_counters())
        self.llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().start()
        _one_after_another(self._oai_serving_chat)

    def _prepare_engine_config(self, callback_ctx: Any) -> tuple[Any, Any, Any]:
        """Puts a CPU's only worker into the engine's process; Ray Serve LLM always gives it one of its own."""
        arguments, frontend, config = super()._prepare_engine_config(callback_ctx)
        if not self.llm_config.get_engine_config().accelerator.requires_remote_initialization:
            config.parallel_config.distributed_executor_backend = "uni"
        return arguments, frontend, config


def _one_after_another(chat: Any) -> None:
    """Lets no more requests be prepared at once (decoded, tokenized) than there are threads that decode.

    All that come at once would be otherwise, and as long as that takes nobody gets an answer, not even a refusal.
    """
    threads = envs.VLLM_MEDIA_LOADING_THREAD_COUNT
    # Who waits for another host holds up nobody.
    preparing = asyncio.Semaphore(threads + (media.FETCHES if os.environ.get(AUDIO_HOSTS) else 0))
    render = chat.render_chat_request

    async def in_turn(request: Any) -> Any:
        async with preparing:
            return await render(request)

    chat.render_chat_request = in_turn


def _counters() -> Callable[[float], None]:
    """Returns what counts clips by their seconds, among Ray's metrics."""
    clips = Counter("balsa_clips", description="Audio clips in requests.")
    audio = Counter("balsa_audio_seconds", description="Seconds of audio in requests.")

    def count(seconds: float) -> None:
        clips.inc()
        audio.inc(seconds)

    return count
