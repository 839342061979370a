"""The engine inside a replica, without two processes that Ray Serve LLM would add for a model that lies on disk."""

from collections.abc import Callable
from typing import Any

# The class that RAYLLM_VLLM_ENGINE_CLS replaces; not exported by ray.serve.llm.
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.util.metrics import Counter

from balsa_ray.vllm_plugin import media
from balsa_ray.vllm_plugin.register import check_registered


class LocalEngine(VLLMEngine):
    """vLLM's engine for a model directory. Each process spared is one import of vLLM: 8 s of CPU and 0.5 GB."""

    async def start(self) -> None:
        """Starts the engine, without the task that would download the model: the path was resolved before."""
        check_registered()
        media.listeners.append(_counters())
        self.llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().start()

    def _prepare_engine_config(self, callback_ctx: Any) -> tuple[Any, Any, Any]:
        """Puts a CPU's only worker into the engine's process; Ray Serve LLM always gives it one of its own."""
        arguments, frontend, config = super()._prepare_engine_config(callback_ctx)
        if not self.llm_config.get_engine_config().accelerator.requires_remote_initialization:
            config.parallel_config.distributed_executor_backend = "uni"
        return arguments, frontend, config


def _counters() -> Callable[[float], None]:
    """Returns what counts clips by their seconds, among Ray's metrics."""
    clips = Counter("balsa_clips", description="Audio clips decoded.")
    audio = Counter("balsa_audio_seconds", description="Seconds of audio decoded.")

    def count(seconds: float) -> None:
        clips.inc()
        audio.inc(seconds)

    return count
