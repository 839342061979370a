import asyncio
import pickle
import time
from types import SimpleNamespace
from typing import Any

import pytest

from balsa_ray import chat_engine
from balsa_ray.chat_engine import as_served, named


class RaysEngine:
    """What `as_served` builds on, with an engine that says what it was asked."""

    IDX_IN_BATCH_COLUMN = "index"

    def __init__(self) -> None:
        model = SimpleNamespace(
            get_diff_sampling_param=lambda: {"repetition_penalty": 1.1, "top_p": 0.5}, max_model_len=16
        )
        self.llm = SimpleNamespace(
            engine=SimpleNamespace(model_config=model), get_scheduler_config=lambda: SimpleNamespace(max_num_seqs=2)
        )

    async def _generate_with_error_handling(self, row: dict[str, Any], batch_uuid: str) -> dict[str, Any]:
        return {"asked": dict(row)}


def asked(load: Any, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    row = {"tokenized_prompt": [1, 2], "sampling_params": {"top_p": 1.0, "max_tokens": 8}, "clips": named([])}

    async def ask() -> list[dict[str, Any]]:
        engine = as_served(load, RaysEngine)()
        made = [row | {"index": i} | request for i, request in enumerate(requests)]
        return await asyncio.gather(*(engine._generate_with_error_handling(one, "batch") for one in made))

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_engine, "check_registered", lambda: None)


def test_what_a_request_leaves_open_is_the_models_own_default() -> None:
    (reply,) = asked(None, {})
    assert reply["asked"]["sampling_params"] == {"repetition_penalty": 1.1, "top_p": 1.0, "max_tokens": 8}
    assert "multimodal_data" not in reply["asked"]


def test_a_clip_is_read_once_for_all_questions_about_it_and_stands_in_order() -> None:
    read = []

    def load(clip: bytes) -> tuple[str, int]:
        name = pickle.loads(clip)
        read.append(name)
        time.sleep(0.05)
        return name, 16_000

    one, two = {"clips": named(["a", "b"])}, {"clips": named(["b", "a"])}
    replies = asked(load, one, two, one, two)
    assert sorted(read) == ["a", "b"]
    assert [[clip for clip, _ in reply["asked"]["multimodal_data"]["audio"]] for reply in replies] == [
        ["a", "b"], ["b", "a"], ["a", "b"], ["b", "a"],
    ]  # fmt: skip


def test_a_clip_that_cannot_be_read_fails_its_questions_alone() -> None:
    def load(clip: bytes) -> tuple[str, int]:
        if pickle.loads(clip) == "broken":
            raise OSError("no such file")
        return "samples", 16_000

    broken, sound = asked(load, {"clips": named(["broken"])}, {"clips": named(["sound"])})
    assert broken == {"index": 0, "__inference_error__": "no such file"}
    assert sound["asked"]["multimodal_data"] == {"audio": [("samples", 16_000)]}


def test_a_prompt_that_leaves_no_room_for_the_reply_is_refused_as_a_server_does() -> None:
    fits, long = asked(None, {"tokenized_prompt": [1] * 8}, {"tokenized_prompt": [1] * 9})
    assert "asked" in fits
    assert "9 tokens" in long["__inference_error__"]
    assert "16 of engine.max_model_len" in long["__inference_error__"]
