"""Requests that a stranger might send: each gets the 4xx that it deserves, and the server stays well."""

import asyncio
import base64
import io
import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import soundfile
from chat_requests import KEY, Bystander, audio, body, clip, url, wav

from balsa_ray.serving.chat import Chat
from balsa_ray.serving.server import Server

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
GROWTH_BYTES = 400 << 20


@dataclass(frozen=True)
class Case:
    """A request and the answers that it may get."""

    name: str
    status: tuple[int, ...]
    content: bytes
    headers: dict[str, str]
    path: str = CHAT
    method: str = "POST"


def asked(name: str, request: Any, *status: int, **headers: str) -> Case:
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    given = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    return Case(name, status or (400,), content, given)


def file(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def silence(seconds: int, channels: int, form: str) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 16_000, channels, format=form) as writer:
        for _ in range(seconds):
            writer.write(np.zeros((16_000, channels), np.int16))
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hostile_audio() -> Iterator[Case]:
    """Files that are none, or that lie."""
    good = base64.b64decode(wav(300))
    for text in (
        "@@@",
        "A",
        "=",
        "====",
        "UklGR",
        "\u00e4",
        "\x00",
        " ",
        "UklGRg==\n\n",
        "data:audio/wav;base64,UklGRg==",
    ):
        yield asked(f"base64 {text!r}", body(audio(text)))
    yield asked("empty", body(audio("")))
    for noise in range(20):
        data = np.random.default_rng(noise).bytes(1 + 97 * noise)
        yield asked(f"noise {noise}", body(audio(encoded(data), ("wav", "flac", "mp3", "ogg")[noise % 4])))
    for text in (b"%PDF-1.7", b"<html>", b"{}", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x7fELF", b"GIF89a", b"ID3\x04"):
        yield asked(f"file {text!r}", body(audio(encoded(text * 50))))
    for length in range(1, 44, 2):
        yield asked(f"header cut at {length}", body(audio(encoded(good[:length]))))
    # What stands in the header: channels, rate, bits, format.
    for place, kind, values in (
        (22, "<H", (0, 1000, 65_535)),
        (24, "<I", (0, 1, 100, 2**31, 2**32 - 1)),
        (20, "<H", (0, 2, 85, 65_534)),
    ):
        for value in values:
            lie = bytearray(good)
            struct.pack_into(kind, lie, place, value)
            yield asked(f"header {place}={value}", body(audio(encoded(bytes(lie)))))
    for bad in (np.nan, np.inf, -np.inf):
        samples = np.full(1600, bad, np.float32)
        yield asked(f"samples {bad}", body(audio(encoded(file(samples, subtype="FLOAT")))))
    yield asked("no samples", body(audio(encoded(file(np.zeros(0, np.float32))))))
    yield asked("too long", body(audio(encoded(file(np.zeros(16_000 * 6, np.float32))))))
    # Small files that are long: silence takes no room.
    for form, channels in (("FLAC", 8), ("OGG", 1)):
        yield asked(f"bomb {form}", body(audio(encoded(silence(960, channels, form)), form.lower())))
    for number in (3, 10, 100):
        yield asked(f"{number} clips", body(*[clip(300)] * number))


def hostile_addresses(port: int) -> Iterator[Case]:
    hosts = (
        f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", f"0.0.0.0:{port}", f"2130706433:{port}",
        f"0x7f.1:{port}", f"127.1:{port}", f"[::ffff:127.0.0.1]:{port}", "169.254.169.254", "[fe80::1]", "10.0.0.1",
        "192.168.0.1", "metadata.google.internal", "example.com", f"user:password@127.0.0.1:{port}",
        f"example.com@127.0.0.1:{port}", f"127.0.0.1.nip.io:{port}",
    )  # fmt: skip
    for scheme in ("http", "https", "HTTP"):
        for host in hosts:
            yield asked(f"{scheme} {host}", body(url(f"{scheme}://{host}/clip.wav")))
    for address in (
        "file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/hosts", "/etc/passwd", "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/", "s3://bucket/key", "hf://x", "data:audio/wav,plain", "data:", "data:;base64", "",
        "data:audio/wav;base64", "data:audio/wav;charset=utf-8,abc", "blob:x", "javascript:1", "//127.0.0.1/x", "\x00",
        "http://", "http:///x", "http://[", "http://\u2488\u2488", "data:audio/wav;base64,%55", "shard.tar#bytes=0-9",
    ):  # fmt: skip
        yield asked(f"address {address!r}", body(url(address)))


def hostile_bodies() -> Iterator[Case]:
    """JSON that isn't, and JSON of another shape."""
    for content in (
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"\xff\xfe",
        b"{}",
        b'{"model": "balsa"}',
        b"NaN",
        b"\x00" * 9,
    ):
        yield asked(f"body {content[:9]!r}", content, 400, 422)
    for depth in (100, 5_000, 100_000):
        yield asked(f"deep {depth}", b'{"messages":' * depth + b"1" + b"}" * depth)
        yield asked(f"deep list {depth}", b'{"model":"balsa","messages":' + b"[" * depth + b"]" * depth + b"}")
    many = 500_000  # memory is looked at: of so many mistakes only the first may be kept
    yield asked("many wrong turns", b'{"messages":[' + b"1," * many + b"1]}")
    yield asked("many wrong parts", b'{"messages":[{"role":"user","content":[' + b"1," * many + b"1]}]}")
    yield asked("many wrong biases", body(logit_bias={str(number): "x" for number in range(many // 10)}))
    wrong = (None, 7, -1, 1e400, "x", [], {}, [[]], True, "\ud800", "a" * 10_000)
    for field in ("messages", "model", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logit_bias"):
        for value in wrong:
            harmless = (field, str(value)) in HARMLESS or field in ("n", "stop", "logit_bias", "seed")
            yield asked(f"{field}={str(value)[:9]!r}", body(**{field: value}), *((200,) if harmless else ()), 400, 404)
    for part in (7, None, "x", [], {}, {"type": 7}, {"type": "audio"}, {"type": "image_url", "image_url": {"url": "x"}},
                 {"type": "video_url", "video_url": {"url": "x"}}, {"type": "input_audio"},
                 {"type": "input_audio", "input_audio": 7}, {"type": "input_audio", "input_audio": {"data": 7}},
                 {"type": "input_audio", "input_audio": {"data": {}, "format": []}}, {"type": "audio_url"},
                 {"type": "audio_url", "audio_url": {"url": 7}}, {"type": "audio_url", "audio_url": []},
                 {"type": "text"}, {"type": "text", "text": 7}):  # fmt: skip
        yield asked(f"part {str(part)[:50]}", body(part))
    for half in ({"type": "text", "text": "\ud800"}, audio("\ud800"), url("data:audio/wav;base64,\ud800")):
        yield asked(f"half a pair in {half['type']}", body(half))
    for role in ("nobody", "", None, 7, "tool"):
        message = {"role": role, "content": "hi"}
        yield asked(f"role {role!r}", body(messages=[message]), 200, 400)
    yield asked("long prompt", body({"type": "text", "text": "rain " * 5_000}))
    yield asked("kwargs", body(clip(300), mm_processor_kwargs={"sampling_rate": 8000}))
    yield asked("template", body(chat_template="{{ 1 }}" * 10), 200, 400)


def hostile_fields() -> Iterator[Case]:
    """Fields of vLLM's own requests: some end its engine, some hold up all others."""
    from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest

    # The placeholder of a clip is no word whose probability the model could tell.
    evil: dict[str, list[Any]] = {
        "prompt_logprobs": [0, 5, -1],
        "echo": [True],
        "structured_outputs": [
            {"choice": [f"{number:0100}" for number in range(20_000)]},
            {"regex": r"\p{L}{1,100000}"},
            {"grammar": "root ::= root"},
            {"json": {"$ref": "#"}},
        ],
        "response_format": [{"type": "json_object"}, {"type": "json_schema"}, 7],
        "chat_template_kwargs": [{"conversation": []}, {"tokenize": True}, {"enable_thinking": True, "tools": 7}],
        "use_beam_search": [True],
        "tools": [7, [], [{}]],
        "n": [10**6, 16_384],
        "top_k": [10**30],
        "top_logprobs": [5, 10**6],
        "stream_options": [{"include_usage": True}, {"include_usage": 7}],
        "logit_bias": [{"x": 1}, {"-1": 1}, {str(10**30): 1}],
        "stop": [["a"] * 1_000],
        "max_tokens": [10**30],
        "min_tokens": [10**30],
        "seed": [2**63],
    }
    for field in sorted(evil.keys() | ChatCompletionRequest.model_fields.keys() - Chat.model_fields.keys()):
        for value in evil.get(field, [7]):
            yield asked(f"{field}={str(value)[:50]}", body(clip(300), **{field: value}))
    for extra in ({"tool_calls": 7}, {"tool_calls": [7]}, {"reasoning": 7}, {"name": 7}):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x", **extra}]
        yield asked(f"turn {extra}", body(messages=turns), 200, 400)


HARMLESS = {
    ("model", "None"), ("max_tokens", "None"), ("max_tokens", "True"), ("max_tokens", "7"), ("temperature", "None"),
    ("temperature", "7"), ("temperature", "True"), ("top_p", "None"), ("top_p", "True"),
}  # fmt: skip


def hostile_http() -> Iterator[Case]:
    fine = json.dumps(body()).encode()
    for value in ("", "Bearer wrong", "Basic YTpi", KEY, "Bearer", "Bearer " + "x" * 9_000, f"Bearer {KEY[:-1]}",
                  f"Bearer {KEY}x", f"Bearer {KEY} {KEY}", f"Bearer {KEY.upper()}", f"Bearer x, Bearer {KEY}",
                  "Bearer \u00e4"):  # fmt: skip
        yield Case(f"token {value[:20]!r}", (401,), fine, {"authorization": value} if value else {})
    key = {"authorization": f"Bearer {KEY}"}
    yield Case("huge headers", (400, 431), fine, key | {"x-junk": "x" * 200_000})
    yield Case("huge body", (413,), b" " * (9 << 20), key)
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-99",
        "x",
    ):
        yield Case(f"type {kind}", (200, 400, 415, 422), fine, key | {"content-type": kind})
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield Case(f"method {method}", (405,), b"", key, method=method)
    for path in ("/", "/v1", "/v1/completions", "/v1/embeddings", "/v1/tokenize", "/v1/models/..%2f..%2fetc", "/docs",
                 "/tokenize", "/v1/audio/transcriptions", "/-/routes", "/-/healthz",
                 "/static/../../etc/passwd"):  # fmt: skip
        yield Case(f"path {path}", (200, 404, 405), b"", key, path=path, method="GET")


def test_every_hostile_request_gets_a_4xx_and_the_server_stays_well(
    server: Server, client: openai.OpenAI, bystander: Bystander
) -> None:
    cases = [*hostile_audio(), *hostile_addresses(bystander.port), *hostile_bodies(), *hostile_fields()]
    cases += hostile_http()
    assert len(cases) >= 300
    before = client.chat.completions.create(**body(clip(300)))
    memory = resident()

    async def ask_all() -> list[str]:
        at_once = asyncio.Semaphore(4)  # the queue is short, and 429 is for another test
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as web:
            return [fault for fault in await asyncio.gather(*(ask(web, case, at_once) for case in cases)) if fault]

    faults = asyncio.run(ask_all())
    assert not faults, "\n".join(faults)
    assert bystander.asked == []
    assert resident() - memory < GROWTH_BYTES
    after = client.chat.completions.create(**body(clip(300)))
    assert after.choices[0].message.content == before.choices[0].message.content


async def ask(web: httpx.AsyncClient, case: Case, at_once: asyncio.Semaphore) -> str:
    """What is wrong with the answer to a case, if anything."""
    headers = [(name.encode(), value.encode()) for name, value in case.headers.items()]
    async with at_once:
        try:
            answer = await web.request(case.method, case.path, content=case.content, headers=headers)
        except httpx.TransportError as error:
            return "" if case.name == "huge headers" else f"{case.name}: {error!r}"
    if answer.status_code not in case.status:
        return f"{case.name}: {answer.status_code} {answer.text[:120]}"
    if case.path == CHAT and answer.status_code in (400, 401, 413, 422) and "huge headers" not in case.name:
        message = answer.json()["error"]["message"]
        if not message or len(message) > 300 or "Traceback" in message:
            return f"{case.name}: {message[:120]!r}"
    return ""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST {CHAT} HTTP/1.1\r\ncontent-length: {10**12}", {413}),
        (f"POST {CHAT} HTTP/1.1\r\ncontent-length: -1", {400}),
        (f"POST {CHAT} HTTP/1.1\r\ncontent-length: many", {400}),
        (f"POST {CHAT} HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3", {400}),
        (f"POST {CHAT} HTTP/1.1\r\ntransfer-encoding: x", {400, 501}),
        ("GET  HTTP/1.1", {400}),
        ("\x16\x03\x01", {400}),
    ],
)
def test_a_broken_head_is_refused(server: Server, client: openai.OpenAI, head: str, status: set[int]) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n{{}}".encode("latin-1"))
        answer = connection.recv(4096).decode("latin-1")
    assert int(answer.split()[1]) in status, answer
    assert client.chat.completions.create(**body()).choices


def resident() -> int:
    """Memory of all processes that this one has started."""
    return sum(process.memory_info().rss for process in psutil.Process(os.getpid()).children(recursive=True))
