from typing import Any

import pytest
from ray.util import metrics

from balsa_ray.synthesis.meters import Meters
from balsa_ray.synthesis.progress import counts


def test_rows_and_tokens_are_counted_by_kind_and_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []

    def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
        told.append((self._name.removeprefix("balsa_synthesis_"), value, tags or {}))

    monkeypatch.setattr(metrics.Metric, "_record", record)
    row = {"kind": "present", "strategy": "", "gate": "passed", "prompt_tokens": 5, "response_tokens": 7}
    failed = {"kind": "joint", "strategy": "random", "gate": "error"}
    meters = Meters()
    meters.add(counts([row, row, failed]), left=9)
    assert told == [
        ("rows", 2, {"kind": "present", "gate": "passed"}),
        ("prompt_tokens", 10, {}),
        ("reply_tokens", 14, {}),
        ("rows", 1, {"kind": "joint", "gate": "error"}),
        ("rows_left", 9, {}),
    ]
