"""What a synthesis makes, among Ray's metrics: Prometheus gets them from the node of the driver."""

from collections.abc import Iterable, Mapping
from typing import Any


class Meters:
    """Counts the rows of this run; what stood before it is not counted."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        self._rows = Counter(
            "balsa_synthesis_rows",
            description="Rows written, by kind and gate: passed, error, or why they were rejected.",
            tag_keys=("kind", "gate"),
        )
        self._prompt_tokens = Counter("balsa_synthesis_prompt_tokens", description="Tokens that the LLM read.")
        self._reply_tokens = Counter("balsa_synthesis_reply_tokens", description="Tokens that the LLM wrote.")
        self._left = Gauge("balsa_synthesis_rows_left", description="Planned rows that are still to be made.")

    def add(self, counts: Iterable[Mapping[str, Any]], left: int) -> None:
        """Counts a batch.

        Args:
            counts: As `progress.counts` returns them.
            left: Rows that are still to be made.
        """
        for one in counts:
            self._rows.inc(one["rows"], tags={"kind": one["kind"], "gate": one["gate"]})
            # Ray refuses to add 0, which is what a row that failed has.
            if one["prompt_tokens"]:
                self._prompt_tokens.inc(one["prompt_tokens"])
            if one["response_tokens"]:
                self._reply_tokens.inc(one["response_tokens"])
        self._left.set(left)
