"""Where a training stands, among Ray's metrics: Prometheus gets them from the node of the driver."""

from collections.abc import Mapping
from typing import Any


class Meters:
    """The figures of the last step."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            "step": Gauge("balsa_training_step", description="Steps done."),
            "loss": Gauge("balsa_training_loss", description="Mean over the reply tokens of a step."),
            "validation_loss": Gauge("balsa_training_validation_loss", description="The same on held-out recordings."),
            "tokens_per_second": Gauge("balsa_training_tokens_per_second", description="Of all workers."),
            "samples_per_second": Gauge("balsa_training_samples_per_second", description="Of all workers."),
            "workers": Gauge("balsa_training_workers", description="Workers that made the step."),
            "mfu": Gauge("balsa_training_mfu", description="Share of the GPUs' peak that is used, 0 to 1."),
        }

    def show(self, line: Mapping[str, Any]) -> None:
        """Takes a line of `metrics.jsonl`; what stands in few of them keeps its last value."""
        figures = {**line, "samples_per_second": line["samples"] / line["seconds"]}
        for name, gauge in self._gauges.items():
            if name in figures:
                gauge.set(figures[name])
