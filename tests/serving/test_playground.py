"""The page against a fake endpoint: what is delivered, what the gate lets through, and a user in a real browser."""

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chromium
import httpx
import pytest
import soundfile
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse
from tiny_models import tone

from balsa_ray.prompts.render import prompts
from balsa_ray.serving.auth import Gate, digest
from balsa_ray.serving.playground import PATHS, add_playground

KEY = "the-right-key"
LIMIT = 300_000
in_browser = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on this machine")


@dataclass
class Endpoint:
    """An endpoint that answers without a model.

    Attributes:
        url: Its address.
        asked: Bodies of the questions.
        reply: Pieces of the answer.
        pause: Seconds between two of them.
        finish: Why it ends; None: it breaks off.
    """

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    reply: tuple[str, ...] = ("A <b>dog</b>", " barks", " in the rain.")
    pause: float = 0.0
    finish: str | None = "stop"


def application(endpoint: Endpoint, *, playground: bool = True, keys: tuple[str, ...] = (KEY,)) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Gate, digests=[digest(key) for key in keys], max_body_bytes=LIMIT, max_chats=9)
    if playground:
        add_playground(app, LIMIT)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "balsa", "metadata": {"max_clips": 3}}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        endpoint.asked.append(await request.json())
        return StreamingResponse(stream(), media_type="text/event-stream")

    async def stream() -> AsyncIterator[str]:
        for number, piece in enumerate(endpoint.reply):
            finish = endpoint.finish if number == len(endpoint.reply) - 1 else None
            chunk = {"choices": [{"delta": {"content": piece}, "finish_reason": finish}]}
            yield f"data: {json.dumps(chunk)}\n\n"
            await asyncio.sleep(endpoint.pause)
        yield 'data: {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 7}}\n\ndata: [DONE]\n\n'

    return app


def get(path: str, **options: Any) -> httpx.Response:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(application(Endpoint(), **options))
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.get(path)

    return asyncio.run(answer())


@pytest.mark.parametrize("path", PATHS)
def test_the_page_is_open_and_names_nothing_outside_this_server(path: str) -> None:
    response = get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://|@import|url\(|(src|href)=.//", response.text)


def test_the_page_has_an_example_of_each_kind_from_the_catalogue() -> None:
    text = get("/").text
    kinds = re.findall(r'class="kind">(\w+)<', text)
    assert kinds == ["present", "absent", "combined", "difference", "joint"]
    shown = re.findall(r'data-clips="(\d)" data-text="([^"]+)"', text)
    known = {(prompt.kind, str(prompt.clips), prompt.text) for prompt in prompts()}
    assert {(kind, *example) for kind, example in zip(kinds, shown, strict=True)} <= known


def test_only_the_page_is_open_and_only_where_it_is_switched_on() -> None:
    assert get("/v1/models").status_code == 401
    assert get("/playground.html.jinja").status_code == 401
    for path in PATHS:
        assert get(path, playground=False).status_code == 404


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    server = uvicorn.Server(uvicorn.Config(application(endpoint), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield endpoint
    server.should_exit = True
    thread.join(30)


def recording(folder: Path, name: str, seconds: float = 1.0) -> Path:
    file = folder / name
    soundfile.write(file, tone(300, seconds), 16_000)
    return file


async def answered(page: chromium.Page) -> str:
    await page.until("!document.querySelector('#ask').disabled")
    return str(await page.value("document.querySelector('#answer').textContent"))


def status(page: chromium.Page) -> Any:
    return page.value("document.querySelector('#status').textContent")


def parts(asked: dict[str, Any]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = asked["messages"][0]["content"]
    return content


@in_browser
def test_a_user_asks_about_two_clips_and_reads_the_answer(endpoint: Endpoint, tmp_path: Path) -> None:
    files = recording(tmp_path, "one.flac"), recording(tmp_path, "two.aiff")

    async def use() -> None:
        async with chromium.browser(tmp_path / "profile") as page:
            await page.open(endpoint.url)
            await page.until("document.querySelector('#status').textContent === 'This endpoint wants a key.'")
            await page.type("#key", "a-wrong-key")
            await page.until("document.querySelector('#status').textContent === 'The key is refused.'")
            await page.click("#ask")
            assert await answered(page) == ""
            assert endpoint.asked == []

            await page.type("#key", KEY)
            await page.until("document.querySelector('#count').textContent === '0 of at most 3'")
            await page.click("[data-clips='2']")
            assert "2 clips or more" in await status(page)
            await page.choose("#files", *files[:1])
            await page.choose("#files", recording(tmp_path, "three.wav"))
            await page.until("document.querySelectorAll('#clips li').length === 2")
            await page.click("#ask")
            assert await answered(page) == "A <b>dog</b> barks in the rain."
            assert "40 tokens read, 7 written" in await page.value("document.querySelector('#figures').textContent")

            (asked,) = endpoint.asked
            shown = json.loads(await page.value("document.querySelector('#request').textContent"))
            assert {**shown, "messages": 0} == {**asked, "messages": 0}
            assert all(len(part["input_audio"]["data"]) < 60 for part in parts(shown)[:-1])
            first, second, question = parts(asked)
            assert base64.b64decode(first["input_audio"]["data"]) == files[0].read_bytes()
            assert [first["input_audio"]["format"], second["input_audio"]["format"]] == ["flac", "wav"]
            assert question["text"] == "What is the difference between the recordings?"

            assert page.complaints == []
            assert {url.split("/")[2] for url in page.asked if not url.startswith(("data:", "blob:"))} == {
                endpoint.url.split("/")[2]
            }

    asyncio.run(use())


@in_browser
def test_what_is_wrong_is_said(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "text.doc").write_text("no audio")

    async def use() -> None:
        async with chromium.browser(tmp_path / "profile") as page:
            await page.open(endpoint.url)
            await page.type("#key", KEY)
            await page.until("document.querySelector('#count').textContent === '0 of at most 3'")
            await page.choose("#files", tmp_path / "text.doc")
            await page.until("document.querySelector('#status').textContent.includes('text.doc: this browser can')")
            await page.choose("#files", *[recording(tmp_path, f"{number}.wav", 0.1) for number in range(4)])
            await page.until("document.querySelector('#status').textContent.includes('takes at most 3 clips')")
            assert await page.value("document.querySelectorAll('#clips li').length") == 3

            await page.click("[aria-label='Remove clip 2']")
            await page.choose("#files", recording(tmp_path, "long.wav", 8.0))
            await page.until("document.querySelectorAll('#clips li').length === 3")
            await page.click("#ask")
            await answered(page)
            assert "this endpoint takes 300 kB" in await status(page)
            assert endpoint.asked == []
            await page.click("[aria-label='Remove clip 3']")

            endpoint.finish = None
            await page.click("#ask")
            assert await answered(page)
            assert await status(page) == "The answer broke off."

            endpoint.pause = 30.0
            await page.click("#ask")
            await page.until("document.querySelector('#answer').textContent !== ''")  # it streams
            await page.click("#stop")
            assert await answered(page) == endpoint.reply[0]
            assert await status(page) == "Stopped."
            assert page.complaints == []

    asyncio.run(use())


@in_browser
def test_a_recording_is_sent_as_the_wav_that_the_model_hears(endpoint: Endpoint, tmp_path: Path) -> None:
    async def use() -> None:
        microphone = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"  # beeps, and says yes
        async with chromium.browser(tmp_path / "profile", *microphone) as page:
            await page.open(endpoint.url)
            await page.type("#key", KEY)
            await page.click("#record")
            await page.until("document.querySelector('#record').textContent === 'Stop recording'")
            await asyncio.sleep(1.5)
            await page.click("#record")
            await page.until("document.querySelectorAll('#clips li').length === 1")
            await page.click("#ask")
            await answered(page)
            assert page.complaints == []

    asyncio.run(use())
    (asked,) = endpoint.asked
    audio = parts(asked)[0]["input_audio"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["data"])))
    assert (audio["format"], rate, samples.ndim) == ("wav", 16_000, 1)
    assert 0.5 < len(samples) / rate < 10
    assert abs(samples).max() > 0.01


@in_browser
def test_it_fits_a_phone(endpoint: Endpoint, tmp_path: Path) -> None:
    async def use() -> None:
        async with chromium.browser(tmp_path / "profile") as page:
            await page.open(endpoint.url, 400, 900)
            await page.type("#key", KEY)
            await page.choose("#files", recording(tmp_path, f"{'long name ' * 12}.wav"))
            await page.until("document.querySelectorAll('#clips li').length === 1")
            await page.click("#ask")
            assert await answered(page)
            assert await page.value("document.documentElement.scrollWidth") <= 400
            unnamed = "input, select, textarea"
            assert await page.value(f"[...document.querySelectorAll('{unnamed}')].every((e) => e.labels.length)")

    asyncio.run(use())
