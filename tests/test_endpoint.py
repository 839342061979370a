import asyncio

import pytest

from balsa_ray.endpoint import Answer, Endpoint, QuestionError, _answer_of


def endpoint(rate: float | None) -> Endpoint:
    return Endpoint("http://h", key=None, name="m", sampling={}, concurrency=9, attempts=1, timeout_s=1, rate=rate)


@pytest.mark.parametrize(("rate", "gap"), [(50.0, 0.02), (None, 0.0)])
def test_requests_begin_no_faster_than_the_rate(
    rate: float | None, gap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def turns() -> None:
        limited = endpoint(rate)
        for _ in range(5):
            await limited._turn()

    monkeypatch.setattr("balsa_ray.endpoint.time.monotonic", lambda: 100.0)
    monkeypatch.setattr("balsa_ray.endpoint.asyncio.sleep", sleep)
    asyncio.run(turns())
    assert waits == pytest.approx([gap * turn for turn in range(5)] if rate else [])


def test_an_answer_tells_its_tokens_and_whether_it_was_cut_off() -> None:
    body = b'{"choices": [{"message": {"content": "Rain."}, "finish_reason": "length"}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}'  # noqa: E501
    assert _answer_of(body) == Answer("Rain.", 7, 2, "length")
    assert _answer_of(b'{"choices": [{"message": {"content": null}}]}') == Answer("")
    for broken in (b"<html>", b"[]", b'{"choices": []}'):
        with pytest.raises(QuestionError, match="no chat completion"):
            _answer_of(broken)
