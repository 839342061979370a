"""A client of any OpenAI-compatible chat endpoint that tells a bad question from a bad endpoint.

A refused question (400, 413, a reply that is no chat completion, one that fails at every try) is that question's error;
the run goes on. A key that is refused, a model that isn't there, or an endpoint that answers nobody any more ends the
run: the rest would fail too.
"""

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash, unit

KEY_VARIABLE = "BALSA_API_KEY"
"""Environment variable with the bearer token, of clients and of our own endpoint."""
_BUSY = {429, 503}
_AGAIN = {408, 500, 502, 504, *_BUSY}
_LONGEST_PAUSE_S = 30.0
_FAILURES_IN_A_ROW = 20
"""So many questions without an answer to any in between are the endpoint's fault, and not theirs."""


class QuestionError(Exception):
    """One question has no answer; the message says why."""


@dataclass(frozen=True)
class Answer:
    """A reply and what the endpoint says of it; tokens are 0 where it says nothing.

    Attributes:
        response: The reply.
        prompt_tokens: Tokens read.
        response_tokens: Tokens written.
        finish_reason: `stop`, or `length` where the reply was cut off.
    """

    response: str
    prompt_tokens: int = 0
    response_tokens: int = 0
    finish_reason: str = "stop"


class Endpoint:
    """An endpoint, used as an asynchronous context manager.

    Args:
        url: Base URL; `/v1` is added if it has no path.
        key: Bearer token, or None.
        name: The model to ask; None: the only one that the endpoint has.
        sampling: Such as `temperature` and `max_tokens`: fields of every request.
        concurrency: Most requests at once; fewer while the endpoint refuses some because it is busy.
        attempts: Tries of one request.
        timeout_s: Longest time for one try in seconds.
        rate: Most requests a second, second tries included; None: as many as are answered.
        key_variable: The environment variable that the key is read from: it is named where the key is refused.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        name: str | None,
        sampling: dict[str, Any],
        concurrency: int,
        attempts: int,
        timeout_s: float,
        rate: float | None = None,
        key_variable: str = KEY_VARIABLE,
    ) -> None:
        base = url.rstrip("/")
        self.url = base if base.count("/") > 2 else f"{base}/v1"
        self.name = name
        self._key_variable = key_variable
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._sampling, self._concurrency, self._attempts = sampling, concurrency, attempts
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._slots = _Slots(concurrency)
        self._gap, self._next_start = 1 / rate if rate else 0.0, 0.0
        self._last_answer, self._failures = 0.0, 0

    async def __aenter__(self) -> Self:
        """Opens the connection pool."""
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes it."""
        await self._session.close()

    async def find_model(self) -> dict[str, Any]:
        """Returns `endpoint`, `name` and `fingerprint` of the model that is asked.

        The fingerprint is the weights' hash where the endpoint is ours and publishes it, else made from the names.

        Raises:
            UserError: If nobody answers, the key is refused, or it isn't clear which model is meant.
        """
        try:
            status, body, _ = await self._request("GET", "/models", None)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UserError(f"endpoint: nobody answers at {self.url} ({_reason(error)})", exit_code=1) from error
        cards = _cards(body) if status == 200 else {}
        if status in (401, 403):
            raise UserError(f"endpoint: {self.url} refuses the key ({status}): set {self._key_variable}", exit_code=1)
        if not cards and self.name is None:
            raise UserError(f"endpoint: {self.url} lists no models ({status}): set name", exit_code=1)
        if cards and self.name is None and len(cards) > 1:
            raise UserError(f"name: the endpoint has several models, choose one of {', '.join(sorted(cards))}")
        if cards and self.name is not None and self.name not in cards:
            raise UserError(f"name: the endpoint has no model {self.name!r}, only {', '.join(sorted(cards))}")
        self.name = self.name or next(iter(cards))
        published = (cards.get(self.name, {}).get("metadata") or {}).get("fingerprint")
        fingerprint = published or stable_hash(self.url, self.name)
        return {"endpoint": self.url, "name": self.name, "fingerprint": fingerprint, "weights_known": bool(published)}

    async def ask(self, messages: Sequence[dict[str, Any]], **fields: Any) -> Answer:
        """Returns the reply to a conversation.

        Refusals that pass (429, 503, other 5xx), lost connections and timeouts are tried again with growing pauses.

        Args:
            messages: Its turns, the last one the user's.
            **fields: Of this request alone, such as `seed`.

        Raises:
            QuestionError: If this question was refused, or every try failed while the endpoint was there.
            UserError: If the key was refused, or the endpoint answers nobody any more (exit code 1).
        """
        body = json.dumps({"model": self.name, "messages": list(messages), **self._sampling, **fields}).encode()
        began, problem, wanted = time.monotonic(), "", 0.0
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(max(wanted, _pause(attempt, body)))
            wanted = 0.0
            await self._turn()
            try:
                async with self._slots:
                    sent = time.monotonic()
                    status, reply, headers = await self._request("POST", "/chat/completions", body)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = _reason(error)
                continue
            if status == 200:
                self._last_answer, self._failures = time.monotonic(), 0
                self._slots.more()
                return _answer_of(reply)
            if status in _BUSY:
                self._slots.fewer(sent)
            problem = f"{status}: {_message_of(reply)}"
            if status in (401, 403):
                told = f"endpoint: {self.url} refuses the key ({problem}): set {self._key_variable}"
                raise UserError(told, exit_code=1)
            if status not in _AGAIN and not _no_such_path(status, reply):
                raise QuestionError(problem)
            wanted = _retry_after(headers)
        self._failures += 1
        if self._last_answer > began or (self._failures < _FAILURES_IN_A_ROW and await self._is_there()):
            raise QuestionError(f"{self._attempts} tries failed, the last with {problem}")
        raise UserError(f"endpoint: {self.url} answers nobody any more ({problem})", exit_code=1)

    async def _is_there(self) -> bool:
        try:
            status, body, _ = await self._request("GET", "/models", None)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return status < 500 and not _no_such_path(status, body)

    async def _turn(self) -> None:
        """Waits until the rate allows another request."""
        if self._gap:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + self._gap
            await asyncio.sleep(start - now)

    async def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {"Content-Type": "application/json"} if body else {}
        async with self._session.request(method, self.url + path, data=body, headers=headers) as response:
            return response.status, await response.read(), response.headers


class _Slots:
    """Requests that may be under way at once: halved when one is refused, and one more for each round of answers.

    An endpoint that is busy is then asked as much as it can take, and not by ever more second tries.
    """

    def __init__(self, most: int) -> None:
        self._most, self._limit, self._busy, self._halved = most, float(most), 0, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        while self._busy >= int(self._limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._next()  # it may have been this one's turn
                raise
        self._busy += 1

    async def __aexit__(self, *_: object) -> None:
        self._busy -= 1
        self._next()

    def more(self) -> None:
        """Takes note of an answer."""
        self._limit = min(self._most, self._limit + 1 / self._limit)
        self._next()

    def fewer(self, sent: float) -> None:
        """Takes note of a refusal, unless the request was sent before the limit was last halved."""
        if sent > self._halved:
            self._halved, self._limit = time.monotonic(), max(1.0, self._limit / 2)

    def _next(self) -> None:
        while self._waiting and self._busy < int(self._limit):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


def _pause(attempt: int, body: bytes) -> float:
    """Returns seconds to wait: doubled from a half, and spread, so that refused requests don't return all at once."""
    spread = 0.5 + unit(attempt, hashlib.sha256(body).hexdigest())
    return float(min(_LONGEST_PAUSE_S, 0.5 * 2 ** (attempt - 1)) * spread)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Returns the seconds that the endpoint asks to wait, if it says so in seconds."""
    seconds = headers.get("Retry-After", "")
    return min(_LONGEST_PAUSE_S, float(seconds)) if seconds.isdigit() else 0.0


def _cards(body: bytes) -> dict[str, dict[str, Any]]:
    """Returns the model cards by id; none if the body is something else."""
    try:
        return {card["id"]: card for card in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _answer_of(body: bytes) -> Answer:
    try:
        reply = json.loads(body)
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        content = choice["message"]["content"] or ""
        if not isinstance(content, str):
            raise TypeError
        return Answer(
            content.encode("utf-8", "replace").decode(),  # JSON can write half a character
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            "length" if choice.get("finish_reason") == "length" else "stop",
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise QuestionError(f"the reply is no chat completion: {body[:80]!r}") from error


def _no_such_path(status: int, body: bytes) -> bool:
    """Whether somebody else than the API answers there: a proxy, while the server behind it comes or goes."""
    return status == 404 and not body.lstrip().startswith(b"{")


def _message_of(body: bytes) -> str:
    """Returns the message of an OpenAI-style error body, or the beginning of whatever came."""
    try:
        return str(json.loads(body)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return "timeout" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
