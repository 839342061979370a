import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from balsa_ray.config import UserError
from balsa_ray.serving import auth
from balsa_ray.serving.auth import CHAT_PATH, Gate, digest, read_keys

LIMIT = 1000


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Reads the whole body and says how long it was; fails on /broken."""
    if scope["path"] == "/broken":
        raise RuntimeError("actor 7 at 10.0.0.3 died")
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def ask(
    path: str = "/v1/models", *, app: Any = echo, keys: tuple[str, ...] = ("a", "b"), **request: Any
) -> httpx.Response:
    gate = Gate(app, [digest(key) for key in keys], LIMIT, max_chats=1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
        return await client.post(path, **request)


def run(coroutine: Any) -> httpx.Response:
    return asyncio.run(coroutine)


@pytest.mark.parametrize("header", ["Bearer a", "Bearer b", "bearer  a "])
def test_every_key_opens_the_gate(header: str) -> None:
    assert run(ask(headers={"Authorization": header})).status_code == 200


@pytest.mark.parametrize("header", ["", "a", "Basic a", "Bearer", "Bearer c", "Bearer ab", "Bearer a b"])
def test_anything_else_is_refused_as_openai_does(header: str) -> None:
    response = run(ask(headers={"Authorization": header} if header else {}))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_health_needs_no_key_and_without_keys_nothing_does() -> None:
    assert run(ask("/healthz")).status_code == 200
    assert run(ask(keys=())).status_code == 200


def test_a_large_body_is_refused_whether_or_not_it_says_so() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    key = {"Authorization": "Bearer a"}
    assert run(ask(headers=key, content=b"x" * LIMIT)).text == str(LIMIT)
    for body in (b"x" * (LIMIT + 1), chunks()):
        response = run(ask(headers=key, content=body))
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_come_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "BODY_SECONDS", 0.05)

    async def some() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(0.5)
        yield b"x"

    async def ask_twice() -> list[int]:
        gate = Gate(echo, [], LIMIT, max_chats=1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
            return [(await client.post(CHAT_PATH, content=content)).status_code for content in (some(), b"x")]

    assert asyncio.run(ask_twice()) == [408, 200]


def test_bodies_have_so_much_memory_together_and_one_may_always_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MOST_BYTES", 150)

    async def ask() -> list[int]:
        go_on, inside = asyncio.Event(), asyncio.Event()

        async def slow(*asked: Any) -> None:
            inside.set()
            await go_on.wait()
            await echo(*asked)

        gate = Gate(slow, [], LIMIT, max_chats=9)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
            first = asyncio.ensure_future(client.post(CHAT_PATH, content=b"x" * 200))
            await inside.wait()
            second = await client.post(CHAT_PATH, content=b"x")
            go_on.set()
            third = (await first).status_code, (await client.post(CHAT_PATH, content=b"x")).status_code
        return [second.status_code, *third]

    assert asyncio.run(ask()) == [429, 200, 200]


@pytest.mark.parametrize("root", ["", "/llm"])
def test_paths_are_those_below_the_applications_own(root: str) -> None:
    gate = Gate(echo, [digest("a")], LIMIT, max_chats=0)
    transport = httpx.ASGITransport(gate, root_path=root)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
            key = {"Authorization": "Bearer a"}
            asked = [client.get(f"{root}/healthz"), client.post(f"{root}{CHAT_PATH}", content=b"x", headers=key)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [200, 429]


@pytest.mark.parametrize("inside", [True, False])
def test_a_large_body_without_a_length_is_refused_by_the_gate_and_not_by_fastapi(inside: bool) -> None:
    app = FastAPI()

    @app.post("/v1/models")
    async def size(body: dict[str, str]) -> int:
        return len(body["text"])

    async def chunks(count: int) -> AsyncIterator[bytes]:
        yield b'{"text": "'
        for _ in range(count):
            yield b"x" * 100
        yield b'"}'

    if inside:  # as in the ingress
        app.add_middleware(Gate, digests=(), max_body_bytes=LIMIT, max_chats=1)

    def answer(count: int) -> httpx.Response:
        return run(ask(app=app, keys=(), content=chunks(count), headers={"Content-Type": "application/json"}))

    assert answer(5).json() == 500
    refused = answer(20)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "request_too_large"


def test_more_chats_than_may_be_at_once_are_refused_before_their_body_is_read_and_nothing_else_is() -> None:
    async def many() -> None:
        go_on, inside, read = asyncio.Event(), 0, 0

        async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
            nonlocal inside, read
            inside += scope["path"] == CHAT_PATH
            await receive()
            read += scope["path"] == CHAT_PATH
            if scope["path"] == CHAT_PATH:
                await go_on.wait()
            await echo(scope | {"path": "/"}, receive, send)

        gate = Gate(slow, [], LIMIT, max_chats=2)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
            under_way = [asyncio.ensure_future(client.post(CHAT_PATH, content=b"x")) for _ in range(2)]
            while inside < 2:
                await asyncio.sleep(0)
            refused = await client.post(CHAT_PATH, content=b"x")
            assert (refused.status_code, refused.headers["retry-after"], read) == (429, "1", 2)
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert (await client.get("/healthz")).status_code == 200
            go_on.set()
            assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200, 200]
            assert (await client.post(CHAT_PATH, content=b"x")).status_code == 200

    asyncio.run(many())


def test_a_chat_that_fails_or_is_given_up_makes_room_for_another() -> None:
    async def end_badly() -> None:
        for wrong in (RuntimeError, asyncio.CancelledError):

            async def broken(*_: Any, wrong: type[BaseException] = wrong) -> None:
                raise wrong

            gate = Gate(broken, [], LIMIT, max_chats=1)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
                for _ in range(3):
                    with contextlib.suppress(asyncio.CancelledError):
                        assert (await client.post(CHAT_PATH)).status_code == 500

    asyncio.run(end_badly())


def test_a_fault_of_the_server_tells_nothing_about_it() -> None:
    response = run(ask("/broken", headers={"Authorization": "Bearer a"}))
    assert response.status_code == 500
    assert "10.0.0.3" not in json.dumps(response.json())


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSA_API_KEY", raising=False)
    assert read_keys(None) == []
    monkeypatch.setenv("BALSA_API_KEY", "one")
    file = tmp_path / "keys"
    file.write_text("two\n\n  three \n")
    assert read_keys(file) == ["one", "two", "three"]
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        read_keys(file)
    with pytest.raises(UserError, match=r"missing: no such file"):
        read_keys(tmp_path / "missing")
