"""What a run has made so far, and the line on the terminal that says so."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from balsa_ray.synthesis.gates import PASSED

LINE_EVERY_SECONDS = 5.0


@dataclass
class Tally:
    """What has been made so far.

    Attributes:
        rows: Rows by (kind, gate); engine errors have the gate `error`.
        strategies: Those for which a choice was made, by (kind and strategy, gate).
        prompt_tokens: Tokens read.
        response_tokens: Tokens written.
    """

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    strategies: Counter[tuple[str, str]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    response_tokens: int = 0

    def add(self, kind: str, strategy: str, gate: str, rows: int, prompt_tokens: int, response_tokens: int) -> None:
        """Counts some rows of one kind and strategy that went the same way."""
        self.rows[kind, gate] += rows
        if strategy:
            self.strategies[f"{kind}: {strategy}", gate] += rows
        self.prompt_tokens += prompt_tokens
        self.response_tokens += response_tokens

    def count(self, gate: str) -> int:
        """Returns the rows that went one way, of all kinds."""
        return sum(rows for (_, its_gate), rows in self.rows.items() if its_gate == gate)

    @property
    def done(self) -> int:
        """Rows in all."""
        return sum(self.rows.values())

    @property
    def errors(self) -> int:
        """Rows that the engine could not answer."""
        return self.count("error")

    @property
    def rejected(self) -> int:
        """Rows that failed a gate."""
        return self.done - self.errors - self.count(PASSED)


def counts(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns how many rows went which way, as `Tally.add` takes it."""
    ways: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows:
        tokens = {name: row.get(name, 0) for name in ("prompt_tokens", "response_tokens")}
        ways.setdefault((row["kind"], row["strategy"], row["gate"]), Counter()).update({"rows": 1} | tokens)
    return [dict(zip(("kind", "strategy", "gate"), way, strict=True)) | counted for way, counted in ways.items()]


def tally_of(counted: Iterable[Mapping[str, Any]]) -> Tally:
    """Returns the sum of `counts`."""
    tally = Tally()
    for one in counted:
        tally.add(**one)
    return tally


class Progress:
    """Prints a line every few seconds, whether or not rows arrive and whether or not a person watches."""

    def __init__(self, planned: int, standing: Iterable[Mapping[str, Any]] = ()) -> None:
        """Starts the clock; what stands already counts as done."""
        self.planned = planned
        self.tally = tally_of(standing)
        self.before = (self.tally.done, self.tally.response_tokens)
        self.started = time.monotonic()
        self.first: tuple[float, int, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begins to print."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops printing."""
        self._stop.set()
        self._thread.join()

    def add(self, batch: Iterable[Mapping[str, Any]]) -> None:
        """Counts the rows of a batch that is done: arguments of `Tally.add`."""
        for counts in batch:
            self.tally.add(**counts)
        if self.first is None:
            self.first = (time.monotonic(), self.tally.done, self.tally.response_tokens)

    def speed(self) -> tuple[float, float]:
        """Returns rows and written tokens a second since the first rows arrived: the engine's start doesn't count."""
        if self.first is None:
            return 0.0, 0.0
        since, rows, tokens = self.first
        seconds = time.monotonic() - since
        if self.tally.done == rows or seconds <= 0:
            since, (rows, tokens), seconds = self.started, self.before, time.monotonic() - self.started
        return (self.tally.done - rows) / seconds, (self.tally.response_tokens - tokens) / seconds

    def line(self) -> str:
        """Returns where the run stands."""
        tally = self.tally
        if tally.done == self.before[0]:
            return f"synthesis: the engine is starting ({time.monotonic() - self.started:.0f} s)"
        counts = f"{tally.rejected:,} rejected, {tally.errors:,} errors"
        share = f"synthesis: {tally.done:,} of {self.planned:,} rows ({tally.done / self.planned:.0%})"
        if self.first is None or tally.done == self.first[1]:  # too early to say how fast
            return f"{share}; {counts}"
        rows, tokens = self.speed()
        left = (self.planned - tally.done) / rows
        return f"{share}, {left:.0f} s left, {rows:,.0f} rows/s, {tokens:,.0f} tokens/s; {counts}"

    def _run(self) -> None:
        while not self._stop.wait(LINE_EVERY_SECONDS):
            print(self.line(), file=sys.stdout, flush=True)
