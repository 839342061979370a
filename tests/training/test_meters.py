from typing import Any

import pytest
from ray.util import metrics

from balsa_ray.training.meters import Meters


def test_the_last_step_is_shown_and_what_it_lacks_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}

    def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
        told[self._name.removeprefix("balsa_training_")] = value

    monkeypatch.setattr(metrics.Metric, "_record", record)
    meters = Meters()
    line = {"step": 1, "loss": 0.5, "samples": 8, "seconds": 2.0, "tokens_per_second": 9.0, "workers": 2, "stage": "a"}
    meters.show(line | {"validation_loss": 0.6})
    meters.show(line | {"step": 2, "loss": 0.4})
    assert told == {
        "step": 2, "loss": 0.4, "validation_loss": 0.6, "tokens_per_second": 9.0, "samples_per_second": 4.0,
        "workers": 2,
    }  # fmt: skip
