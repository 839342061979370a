"""vLLM inside Ray Data that answers a chat as an endpoint with the same model does: clips, defaults and refusals.

Ray's actor takes clips as samples, which would cross the cluster once a question. Here they are named, and read in the
engine's actor, once for all questions about them; vLLM's caches then encode them once.
"""

import asyncio
import pickle
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from balsa_ray.vllm_plugin.register import check_registered

_CLIPS_KEPT = 32
"""Clips that an actor holds when no question about them is under way: questions about one clip come together."""


def as_served(load: Callable[[bytes], tuple[Any, int]], engine: type[Any]) -> type[Any]:
    """Returns a class of Ray's engine actors that also reads a column `clips`, made by `named`.

    Args:
        load: From what names a clip to its samples and their rate; an OSError or ValueError becomes the row's error.
        engine: Ray's class.
    """

    class AsServed(engine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            check_registered()
            super().__init__(*args, **kwargs)
            model = self.llm.engine.model_config
            # What vLLM's server takes for whatever a request leaves open, from the model's generation_config.json.
            self._defaults = model.get_diff_sampling_param()
            self._longest = model.max_model_len
            self._free = asyncio.Semaphore(self.llm.get_scheduler_config().max_num_seqs)
            self._clip = lru_cache(_CLIPS_KEPT)(partial(_in_thread, load))

        async def _generate_with_error_handling(self, row: dict[str, Any], batch_uuid: Any) -> dict[str, Any]:
            clips = pickle.loads(row.pop("clips"))
            row["sampling_params"] = self._defaults | row["sampling_params"]
            async with self._free:
                try:
                    _check_length(len(row["tokenized_prompt"]), row["sampling_params"]["max_tokens"], self._longest)
                    if clips:
                        row["multimodal_data"] = {"audio": await asyncio.gather(*map(self._clip, clips))}
                except (OSError, ValueError) as error:
                    index = self.IDX_IN_BATCH_COLUMN
                    return {index: row[index], "__inference_error__": str(error)}
                return dict(await super()._generate_with_error_handling(row, batch_uuid))

    AsServed.__name__ = AsServed.__qualname__ = engine.__name__
    return AsServed


def named(clips: list[Any]) -> bytes:
    """Returns the column `clips` of a row; `load` gets each of them pickled."""
    return pickle.dumps([pickle.dumps(clip) for clip in clips])


def _in_thread(load: Callable[[bytes], tuple[Any, int]], clip: bytes) -> "asyncio.Future[tuple[Any, int]]":
    return asyncio.ensure_future(asyncio.to_thread(load, clip))


def _check_length(prompt: int, reply: int, longest: int) -> None:
    """Refuses what vLLM's server refuses before it starts: the engine alone would cut the reply short."""
    if prompt + reply > longest:
        raise ValueError(
            f"the prompt has {prompt} tokens and the reply may have {reply} (sampling.max_tokens): "
            f"more than the {longest} of engine.max_model_len"
        )
