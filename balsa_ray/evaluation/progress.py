"""The line on the terminal that says how far a benchmark is."""

import time

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Prints a line every ten seconds at most.

    Args:
        name: What is asked.
        total: How many questions there are.
    """

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._began = self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # when an answer came first, and how many: before, engines start

    def say(self, done: int, reused: int, errors: int, *, last: bool = False) -> None:
        """Prints where it stands, if it is time to.

        Args:
            done: Questions that are through, errors included.
            reused: How many of them were answered before.
            errors: How many of them have no answer.
            last: Print it now; nothing comes after.
        """
        now = time.monotonic()
        if self._first is None and done > reused:
            self._first = now, done
        if now - self._said < _SECONDS_BETWEEN_LINES and not last:
            return
        self._said = now
        line = f"{self._name}: {done - errors}/{self._total} answered"
        line += f", {reused} of them by earlier replies" if reused else ""
        line += f", {errors} errors" if errors else ""
        if last and done > reused:
            line += f", {(done - reused) / (now - self._began):.1f}/s"
        elif self._first and done > self._first[1]:
            rate = (done - self._first[1]) / (now - self._first[0])
            line += f", {rate:.1f}/s, about {(self._total - done) / rate:.0f} s left"
        print(line, flush=True)
