"""The HTTP side of the endpoint, as it runs in a Ray Serve replica. Importing it imports vLLM.

Only what the contract names is routed: models, chat completions, health and metrics. Other routes of vLLM and of Ray
Serve LLM would take raw prompts, which bypass the chat template and its care for the audio placeholder.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import aiohttp
import ray
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field, ValidationError
from ray.exceptions import RayActorError

# What Ray Serve LLM's engines take and give; not exported by ray.serve.llm.
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, ErrorResponse
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from balsa_ray.serving.auth import BUSY, CHAT_PATH, GONE, RETRY_AFTER_SECONDS, Gate, error_body
from balsa_ray.serving.chat import Chat
from balsa_ray.serving.playground import add_playground

_HEALTH_SECONDS = 5.0


class Engine(Protocol):
    """What answers chats for one model, in this process or in another."""

    async def chat(self, body: ChatCompletionRequest, info: RawRequestInfo) -> AsyncIterator[Any]:
        """Returns an iterator: one response or error, or lists of the lines of a stream."""

    async def check_health(self) -> None:
        """Raises if the engine is not well."""


@dataclass(frozen=True)
class HttpSettings:
    """What the HTTP side is told beside the models.

    Attributes:
        digests: Digests of the keys that are accepted; none: everybody is let in.
        max_body_bytes: Largest request.
        max_chats: Most chats at once in a replica, in work or waiting.
        playground: Whether there is a page at `/`.
    """

    digests: Sequence[bytes]
    max_body_bytes: int
    max_chats: int
    playground: bool


class Metadata(BaseModel):
    """What a benchmark wants to know of a model: what it measured, and how much it may ask at once."""

    fingerprint: str
    max_clips: int


class Card(BaseModel):
    """A model as OpenAI's API tells of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the endpoint started, in seconds since 1970")
    owned_by: str = "balsa_ray"
    metadata: Metadata


class Cards(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Card]


class Problem(BaseModel):
    """What is wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """The body of every answer that is not what was asked for."""

    error: Problem


# For the spec alone: the gate asks for the key, and refuses before any of this.
_WITH_KEY = [Depends(HTTPBearer(auto_error=False))]
_Responses = dict[int | str, dict[str, Any]]
_ERRORS: _Responses = {
    status: {"model": Refusal, "description": what}
    for status, what in {
        400: "The request can't be understood, or not be heard.",
        401: "The key is missing or wrong.",
        404: "There is no such thing.",
        413: "The request is too large.",
        422: "As 400, which is sent in its place.",
        429: "Too many requests are waiting.",
        500: "A fault of the server.",
        503: "The engine is not up.",
    }.items()
}
_REPLY: _Responses = {200: {"content": {"application/json": {}, "text/event-stream": {}}, "description": "The reply."}}
_FIGURES: _Responses = {200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}}


def http_app(engines: Mapping[str, Engine], cards: Sequence[Card], settings: HttpSettings) -> FastAPI:
    """Returns the application with its routes, its gate and its errors, and with the playground if asked to."""
    app = FastAPI(title="balsa_ray", docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(
        Gate, digests=settings.digests, max_body_bytes=settings.max_body_bytes, max_chats=settings.max_chats
    )
    if settings.playground:
        add_playground(app, settings.max_body_bytes)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)

    @app.get("/v1/models", dependencies=_WITH_KEY)
    async def models() -> Cards:
        return Cards(data=list(cards))

    @app.get("/v1/models/{model:path}", dependencies=_WITH_KEY)
    async def model(model: str) -> Card:
        for card in cards:
            if card.id == model:
                return card
        raise _unknown(model)

    @app.post(CHAT_PATH, responses=_REPLY, dependencies=_WITH_KEY)
    async def chat(body: Chat, request: Request) -> Response:
        name = body.model or cards[0].id
        if name not in engines:
            raise _unknown(name)
        return await _answer(engines[name], _for_vllm(body), RawRequestInfo.from_starlette_request(request))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Returns 200 when every engine is up and well, else 503."""
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await asyncio.gather(*(engine.check_health() for engine in engines.values()))
        except Exception:  # whatever it is, the answer is the same; the replica's own log has the reason
            return JSONResponse(error_body(503, "Not every engine is up."), status_code=503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses=_FIGURES, dependencies=_WITH_KEY)
    async def metrics() -> PlainTextResponse:
        """Returns what the cluster's nodes export for Prometheus, of Ray Serve, of vLLM and of this package."""
        nodes = await asyncio.to_thread(ray.nodes)
        addresses = [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in nodes if n["Alive"]]
        timeout = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            found = await asyncio.gather(*(_exported(session, address) for address in addresses))
        return PlainTextResponse(merged(found))

    return app


def _for_vllm(body: Chat) -> ChatCompletionRequest:
    """Makes vLLM's request of what was checked, and refuses what only vLLM would know."""
    known = ChatCompletionRequest.model_fields
    for name, value in (body.model_extra or {}).items():
        if name in known and value is not None and value != known[name].default:
            raise HTTPException(400, f"{name}: not taken here")
    try:
        checked = body.model_dump(include=set(Chat.model_fields), exclude_unset=True, exclude_none=True)
        return ChatCompletionRequest.model_validate(checked)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from error
    except VLLMClientError as error:  # two fields that don't go together
        raise HTTPException(400, str(error)) from error


async def _answer(engine: Engine, body: ChatCompletionRequest, info: RawRequestInfo) -> Response:
    """Answers a chat; tells who may try again."""
    try:
        replies = aiter(await engine.chat(body, info))
        first = await anext(replies)
    except BackPressureError as error:
        raise HTTPException(429, BUSY, {"retry-after": str(RETRY_AFTER_SECONDS)}) from error
    except (EngineDeadError, RayActorError, DeploymentUnavailableError) as error:
        raise HTTPException(503, GONE, {"retry-after": str(RETRY_AFTER_SECONDS)}) from error
    if isinstance(first, list) and isinstance(first[0], str):
        return StreamingResponse(_lines(first, replies), media_type="text/event-stream")
    if isinstance(first, list):
        (first,) = first
    if not isinstance(first, ErrorResponse):
        return Response(first.model_dump_json(), media_type="application/json")
    if first.error.code >= 500:
        raise RuntimeError(first.error.message)  # logged by the gate, and not told to the client
    raise HTTPException(first.error.code, first.error.message)


async def _lines(first: list[str], replies: AsyncIterator[list[str]]) -> AsyncIterator[str]:
    yield "".join(first)
    async for lines in replies:
        yield "".join(lines)


def merged(exports: Sequence[str]) -> str:
    """Joins what several nodes export for Prometheus: each family of metrics has to stand in one block."""
    families: dict[str, dict[str, None]] = {}
    for export in exports:
        of: dict[str, None] = {}
        for line in export.splitlines():
            if line.startswith("# HELP "):
                of = families.setdefault(line.split(maxsplit=3)[2], {})
            of[line] = None  # in order, and what both say (HELP, TYPE) once
    return "".join(f"{line}\n" for of in families.values() for line in of)


async def _exported(session: aiohttp.ClientSession, address: str) -> str:
    """What one node exports; nothing if it doesn't answer."""
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""


def _unknown(model: str) -> HTTPException:
    return HTTPException(404, f"There is no model {model!r} here; GET /v1/models names those that are.")


async def _invalid(_: Request, error: Any) -> JSONResponse:
    """Names the first wrong field; never shows what was sent, which may be megabytes of audio."""
    # Where a value may be of several types each says what is wrong: the one that got furthest was meant. Their names,
    # as "list[…]", are no part of the path.
    first = max(error.errors(), key=lambda wrong: len(wrong["loc"]))
    where = ".".join(str(part) for part in first["loc"] if part != "body" and "[" not in str(part))
    return JSONResponse(error_body(400, f"{where}: {first['msg']}" if where else first["msg"]), status_code=400)


async def _refused(_: Request, error: Any) -> JSONResponse:
    body = error_body(error.status_code, str(error.detail))
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
