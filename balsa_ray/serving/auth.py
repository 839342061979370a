"""The gate in front of the endpoint: who may ask, how much and how many at once, and errors in the form clients know.

Plain ASGI, so that it stands before everything else and can be tested without Ray.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.endpoint import KEY_VARIABLE
from balsa_ray.serving.playground import PATHS

log = logging.getLogger("ray.serve")

CHAT_PATH = "/v1/chat/completions"
OPEN_PATHS = frozenset({"/healthz", *PATHS})
BUSY = "Too many requests are waiting. Try again later."
GONE = "The engine that worked on this request is gone. Try again."
RETRY_AFTER_SECONDS = 1  # for clients that may try again
BODY_SECONDS = 120.0  # for a body to come: as long as it doesn't, its chat is one of those at once
MOST_BYTES = 2**30  # of the bodies of all chats at once; one may always come
_LONGEST_MESSAGE = 300
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def read_keys(file: Path | None) -> list[str]:
    """Returns the keys that clients may use: that of the environment, and one on each line of a file.

    Raises:
        UserError: If the file can't be read or has no key.
    """
    keys = [key] if (key := os.environ.get(KEY_VARIABLE, "").strip()) else []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = str(getattr(error, "strerror", None) or error).lower()
            raise UserError(f"api_key_file: {file}: {reason}") from error
        if not any(lines):
            raise UserError(f"api_key_file: {file}: holds no key")
        keys += [line for line in lines if line]
    return keys


def digest(key: str) -> bytes:
    """Returns what is kept of a key: all of one length, and of no use to who reads the cluster's state."""
    return hashlib.sha256(key.encode()).digest()


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Returns an error as OpenAI's clients read it, in a line or two: vLLM's may repeat what was sent."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message[:_LONGEST_MESSAGE], "type": kind, "param": None, "code": code}}


class Gate:
    """ASGI middleware: bearer token, size of the body, number of chats, and a last answer to what nobody expected.

    Refuses before anything of the body is read, so that a refusal costs next to nothing.

    Args:
        app: The application behind it.
        digests: Digests of the keys that are accepted; none: everybody is let in.
        max_body_bytes: Largest body.
        max_chats: Most chats at once, from the first byte of the request to the last of the answer.
    """

    def __init__(self, app: Any, digests: Sequence[bytes], max_body_bytes: int, max_chats: int) -> None:
        self._app, self._digests, self._limit = app, tuple(digests), max_body_bytes
        self._max_chats, self._chats, self._bytes = max_chats, 0, 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = _route(scope)
        if path not in OPEN_PATHS and not self._admits(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "Incorrect API key provided.", "invalid_api_key")
            return
        size = int(headers.get(b"content-length", self._limit))  # a body without a length may have any
        if size > self._limit:
            await _refuse(send, 413, self._too_large(), "request_too_large")
            return
        if path != CHAT_PATH:
            await self._pass_on(scope, receive, send)
        elif self._chats >= self._max_chats or (self._chats and self._bytes + size > MOST_BYTES):
            await _refuse(send, 429, BUSY, "rate_limit_exceeded")
        else:
            self._chats += 1
            self._bytes += size
            try:
                await self._pass_on(scope, receive, send)
            finally:
                self._chats -= 1
                self._bytes -= size

    def _admits(self, header: bytes) -> bool:
        """Compares with every key in constant time; how many there are is no secret, what they are is."""
        if not self._digests:
            return True
        kind, _, token = header.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return kind.lower() == b"bearer" and any(matches)

    def _too_large(self) -> str:
        return f"The request body is larger than {self._limit / 2**20:g} MiB."

    async def _pass_on(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        received, whole, started = 0, False, False
        refused: tuple[int, str, str] | None = None
        until = asyncio.get_running_loop().time() + BODY_SECONDS

        async def counted() -> dict[str, Any]:
            nonlocal received, whole, refused
            if whole:  # what comes then is that the client has gone
                later: dict[str, Any] = await receive()
                return later
            try:
                async with asyncio.timeout_at(until):
                    message: dict[str, Any] = await receive()
            except TimeoutError:
                refused = None if started else (408, "The request's body did not come.", "request_timeout")
                raise _BodyRefusedError from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > self._limit:  # a body without a length, or with a false one
                refused = None if started else (413, self._too_large(), "request_too_large")
                raise _BodyRefusedError
            return message

        async def watched(message: dict[str, Any]) -> None:
            nonlocal started
            if refused:  # FastAPI makes an answer of its own of what `counted` raised
                return
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except Exception:  # the outermost layer: whatever was raised is logged, and the client still gets an answer
            if not refused:
                log.exception("request failed: %s %s", scope["method"], scope["path"])
                if started:
                    raise  # half an answer is out; the connection has to break
                await _refuse(send, 500, "The server failed to answer this request.", "internal_error")
        if refused:
            await _refuse(send, *refused)


class _BodyRefusedError(Exception):
    pass


def _route(scope: dict[str, Any]) -> str:
    """Returns the path below the application's own, which Ray Serve's `route_prefix` puts before it."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


async def _refuse(send: Any, status: int, message: str, code: str) -> None:
    body = json.dumps(error_body(status, message, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
