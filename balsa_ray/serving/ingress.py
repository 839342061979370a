"""The HTTP side of the endpoint, as it runs in a Ray Serve replica. Importing it imports vLLM.

Only what the contract names is routed: models, chat completions and health. Ray Serve LLM's other routes would take
raw prompts, which bypass the chat template and its care for the audio placeholder.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import ray
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from ray.exceptions import RayActorError, RayError

# Not exported by ray.serve.llm, and the only way to know Ray's refusals (an engine's 400, an unknown model).
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, ModelCard, OpenAIHTTPException
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from starlette.exceptions import HTTPException

from balsa_ray.serving.auth import Gate, error_body
from balsa_ray.serving.chat import fault
from balsa_ray.serving.playground import add_playground

_HEALTH_SECONDS = 5.0


async def _check(request: Request) -> None:
    """Refuses what is no chat request; comes before FastAPI makes one of it."""
    if wrong := fault(await request.body()):
        raise HTTPException(400, wrong)


_ROUTES = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "chat": lambda app: app.post("/v1/chat/completions", dependencies=[Depends(_check)]),
    "healthz": lambda app: app.get("/healthz"),
    "metrics": lambda app: app.get("/metrics", response_class=PlainTextResponse),
}


class Ingress(OpenAiIngress):
    """Routes requests to the engine of the model that they name."""

    def __init__(self, llm_deployments: dict[str, Any], **others: Any) -> None:
        super().__init__(llm_deployments, **others)
        self._engines = llm_deployments

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a chat; refuses at once what would wait too long, and tells who may try again."""
        try:
            return await super().chat(body, request)
        except BackPressureError as error:
            later = {"retry-after": f"{error.retry_after_s:.0f}"}
            raise HTTPException(429, "Too many requests are waiting. Try again later.", later) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            gone = "The engine that worked on this request is gone. Try again."
            raise HTTPException(503, gone, {"retry-after": "1"}) from error

    async def healthz(self) -> JSONResponse:
        """Returns 200 when every engine is up and well, else 503."""
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await asyncio.gather(*(engine.check_health.remote() for engine in self._engines.values()))
        except Exception:  # whatever it is, the answer is the same; the replica's own log has the reason
            return JSONResponse(error_body(503, "Not every engine is up."), status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> str:
        """Returns what the cluster's nodes export for Prometheus, of Ray Serve, of vLLM and of this package."""
        addresses = [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]
        ]
        timeout = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return "".join(await asyncio.gather(*(_exported(session, address) for address in addresses)))


async def _exported(session: aiohttp.ClientSession, address: str) -> str:
    """What one node exports; nothing if it doesn't answer."""
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""


def model_card(name: str, fingerprint: str, max_clips: int) -> ModelCard:
    """Returns what `/v1/models` says of a model; the fingerprint lets a benchmark say what it measured."""
    metadata = {"fingerprint": fingerprint, "max_clips": max_clips}
    return ModelCard(id=name, object="model", owned_by="balsa_ray", permission=[], metadata=metadata)


def ingress_class(digests: Sequence[bytes], max_body_bytes: int, playground: bool) -> Any:
    """Returns the deployment's class with its routes, its gate and its errors, and with the playground if asked to."""
    app = FastAPI(title="balsa_ray", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, digests=tuple(digests), max_body_bytes=max_body_bytes)
    if playground:
        add_playground(app, max_body_bytes)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(OpenAIHTTPException, _refused_by_engine)
    app.add_exception_handler(ValueError, _unreadable)
    return make_fastapi_ingress(Ingress, endpoint_map=_ROUTES, app=app)


async def _invalid(_: Request, error: Any) -> JSONResponse:
    """Names the first wrong field; never shows what was sent, which may be megabytes of audio."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse(error_body(400, f"{where}: {first['msg']}" if where else first["msg"]), status_code=400)


async def _refused(_: Request, error: Any) -> JSONResponse:
    body = error_body(error.status_code, str(error.detail))
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _refused_by_engine(_: Request, error: Any) -> JSONResponse:
    if error.status_code >= 500:
        raise error  # logged by the gate, and not told to the client
    return JSONResponse(error_body(error.status_code, error.message), status_code=error.status_code)


async def _unreadable(_: Request, error: Any) -> JSONResponse:
    """Refuses a message whose content is only looked at when it is used (content parts are read lazily)."""
    if isinstance(error, RayError):
        raise error  # a fault of the engine that calls itself a ValueError
    return JSONResponse(error_body(400, "messages: the content of a message is not of a known form"), status_code=400)
