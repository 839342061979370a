"""The real thing: Ray Serve, vLLM and the plugin with a tiny random model, asked over HTTP. One start for all tests."""

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import chromium
import httpx
import openai
import pytest
from chat_requests import KEY, PATIENT, Bystander, body, clip, url, wav

from balsa_ray.serving.playground import PATHS
from balsa_ray.serving.server import Server

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"


def reply(client: openai.OpenAI, *parts: Any) -> tuple[str, int]:
    """Text and number of prompt tokens."""
    completion = client.chat.completions.create(**body(*parts))
    return completion.choices[0].message.content or "", completion.usage.prompt_tokens if completion.usage else 0


def test_health_is_open_and_models_carry_their_fingerprint(server: Server, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server.url}/healthz", timeout=PATIENT).status_code == 200
    (model,) = client.models.list().data
    assert model.id == "balsa"
    assert model.model_dump()["metadata"] == {"fingerprint": server.models[0].fingerprint, "max_clips": 2}


def test_the_playground_is_open_to_see(server: Server) -> None:
    for path in PATHS:
        response = httpx.get(server.url + path, timeout=PATIENT)
        assert (response.status_code, response.headers["x-content-type-options"]) == (200, "nosniff")


@pytest.mark.parametrize("key", ["a-wrong-key", ""])
def test_a_wrong_key_is_refused(server: Server, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for path in ("/v1/models", "/openapi.json"):
        assert httpx.get(server.url + path, headers=headers, timeout=PATIENT).status_code == 401
    response = httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json=body(), timeout=PATIENT)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_no_one_and_two_clips_are_heard_in_their_order(client: openai.OpenAI) -> None:
    none, one = reply(client), reply(client, clip(300))
    two, swapped = reply(client, clip(300), clip(2000)), reply(client, clip(2000), clip(300))
    assert none[1] < one[1] < two[1] == swapped[1]
    assert two[0] != swapped[0]
    assert reply(client, clip(300), clip(2000)) == two


def test_a_data_uri_is_the_same_as_input_audio(client: openai.OpenAI) -> None:
    assert reply(client, url(f"data:audio/wav;base64,{wav(300)}")) == reply(client, clip(300))


def test_a_stream_brings_the_same_words(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**body(clip(300)), stream=True))
    assert len(chunks) > 1
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == reply(client, clip(300))[0]


SOUND, TEXT = clip(300), {"type": "text", "text": "What do you hear?"}
KITS = {
    "AU-Harness": (
        {"messages": [{"role": "user", "content": [TEXT, SOUND]}], "tools": None, "max_completion_tokens": 8},
        {"connection": "close"},
    ),
    "lmms-eval": (
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [url(f"data:audio/wav;base64,{wav(300)}"), TEXT]},
            ],
            "max_tokens": 8,
        },
        {},
    ),
    "UltraEval-Audio": (
        {"messages": [{"role": "user", "content": [SOUND, TEXT]}], "max_tokens": 8, "modalities": ["text"], "top_p": 1},
        {},
    ),
}


@pytest.mark.parametrize("kit", KITS)
def test_the_kits_that_people_use_are_answered(server: Server, client: openai.OpenAI, kit: str) -> None:
    request, headers = KITS[kit]
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "balsa", "temperature": 0} | request,
        headers={"Authorization": f"Bearer {KEY}", **headers},
        timeout=PATIENT,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
    # The clip is heard: without it the prompt is shorter by its embeddings.
    without = [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        for message in request["messages"]
    ]
    deaf = client.chat.completions.create(model="balsa", messages=without, max_tokens=1)
    assert deaf.usage
    assert answer.json()["usage"]["prompt_tokens"] > deaf.usage.prompt_tokens


@pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on this machine")
def test_the_playground_shows_the_same_words(server: Server, client: openai.OpenAI, tmp_path: Path) -> None:
    files = tmp_path / "low.wav", tmp_path / "high.wav"
    for file, frequency in zip(files, (300, 2000), strict=True):
        file.write_bytes(base64.b64decode(wav(frequency)))

    async def answer() -> Any:
        async with chromium.browser(tmp_path / "profile") as page:
            await page.open(server.url)
            await page.type("#key", KEY)
            await page.type("#max-tokens", "8")
            await page.choose("#files", *files)
            await page.until("document.querySelector('#count').textContent === '2 of at most 2'")
            await page.click("#ask")
            await page.until("document.querySelector('#figures').textContent.includes('8 written')")
            return await page.value("document.querySelector('#answer').textContent")

    assert asyncio.run(answer()) == reply(client, clip(300), clip(2000))[0]


def test_the_server_fetches_nothing(server: Server, client: openai.OpenAI, bystander: Bystander) -> None:
    for address in (
        f"http://127.0.0.1:{bystander.port}/clip.wav",
        "file:///etc/passwd",
        "data:audio/wav,plain",
        "ftp://127.0.0.1/x",
    ):
        with pytest.raises(openai.BadRequestError):
            reply(client, url(address))
    assert bystander.asked == []


@pytest.mark.parametrize(
    ("parts", "settings"),
    [
        ([clip(300)] * 3, {}),
        ([{"type": "input_audio", "input_audio": {"data": "@@@", "format": "wav"}}], {}),
        ([{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}], {}),
        ([7], {}),
        ([{"type": "nonsense"}], {}),
        ([], {"max_tokens": "many"}),
        ([], {"messages": "hello"}),
    ],
    ids=["three clips", "no base64", "no audio", "number", "unknown part", "wrong type", "no messages"],
)
def test_a_clients_fault_is_a_400_that_says_what_is_wrong(client: openai.OpenAI, parts: Any, settings: Any) -> None:
    request = body(*parts, **settings)
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=request, cast_to=httpx.Response)
    error = json.loads(refused.value.response.text)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert reply(client)  # and the engine lives


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ([{"type": "text", "text": 7}], "messages.0.content.0.text.text: "),
        ([{"type": "input_audio", "input_audio": {"data": 7}}], "messages.0.content.0.input_audio.input_audio.data: "),
        (7, "messages.0.content: "),
    ],
)
def test_a_wrong_part_is_named(client: openai.OpenAI, content: Any, where: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body(messages=[{"role": "user", "content": content}]), cast_to=object)
    assert json.loads(refused.value.response.text)["error"]["message"].startswith(where)


def test_what_can_not_wait_is_refused_at_once_and_the_others_are_answered(server: Server) -> None:
    async def ask_many() -> list[tuple[httpx.Response, float]]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120, limits=httpx.Limits()) as web:
            return await asyncio.gather(*(ask(web) for _ in range(60)))

    async def ask(web: httpx.AsyncClient) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        request = body(clip(300), max_tokens=150, ignore_eos=True)
        return await web.post(CHAT, json=request), time.monotonic() - began

    answers = asyncio.run(ask_many())
    refused = [answer for answer, _ in answers if answer.status_code == 429]
    answered = [seconds for answer, seconds in answers if answer.status_code == 200]
    assert len(refused) + len(answered) == 60
    assert len(answered) >= 8
    assert len(refused) >= 20
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert {answer.json()["error"]["type"] for answer in refused} == {"rate_limit_error"}
    assert all(answer.headers["x-request-id"] for answer, _ in answers)


def test_requests_that_are_given_up_make_room_at_once(server: Server) -> None:
    async def give_up_and_ask() -> list[int]:
        headers = {"Authorization": f"Bearer {KEY}"}
        long = body(clip(300), max_tokens=200, ignore_eos=True)
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as web:
            for stream in (False, True):
                # As many as the server takes, so that one that stays would cost another its place.
                asked = [asyncio.ensure_future(web.post(CHAT, json=long | {"stream": stream})) for _ in range(12)]
                await asyncio.sleep(0.2)
                for request in asked:
                    request.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
                await asyncio.sleep(0.5)
            answers = await asyncio.gather(*(web.post(CHAT, json=body(clip(300))) for _ in range(12)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(give_up_and_ask()) == [200] * 12


def test_metrics_are_for_those_with_a_key(server: Server, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server.url}/metrics", timeout=PATIENT).status_code == 401
    reply(client, clip(300))
    headers = {"Authorization": f"Bearer {KEY}"}
    deadline = time.monotonic() + 60  # Ray gathers them every few seconds
    wanted = (
        "ray_serve_num_http_requests",
        "ray_vllm_generation_tokens",
        "ray_vllm_mm_cache_hits",
        "ray_balsa_audio_seconds",
    )
    while not all(name in (seen := httpx.get(f"{server.url}/metrics", headers=headers).text) for name in wanted):
        assert time.monotonic() < deadline, [name for name in wanted if name not in seen]
        time.sleep(2)


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**body(model="nobody"))
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
