"""What each stage of a run did, by the statistics that Ray Data keeps of its operators."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import Dataset

# By what stands in the name of the operator, which Ray makes of the functions' names; of several, the last counts.
STAGES = {
    "_plan": "planning",
    "prepare": "requests (chat template, tokens)",
    "vLLMEngineStage": "replies",
    "_Asker": "replies",
    "finish": "gates and writing",
}


class Stages:
    """Adds up rows and seconds of the stages over the rounds of a run."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, float]] = {}

    def add(self, dataset: "Dataset") -> None:
        """Counts a dataset that has been read to its end."""
        for operator in _operators(dataset._get_stats_summary()):
            names = [name for part, name in STAGES.items() if part in operator.operator_name]
            if names and operator.wall_time and operator.output_num_rows:
                rows, seconds = self._found.get(names[-1], (0, 0.0))
                self._found[names[-1]] = (
                    rows + int(operator.output_num_rows.sum),
                    seconds + float(operator.wall_time.sum),
                )

    def figures(self) -> list[dict[str, Any]]:
        """Returns a row a stage in the order of the work: its name, the samples it was done with, seconds in its tasks.

        What comes out of the last are counts and no samples: it was done with those that the engine gave it.
        """
        figures: list[dict[str, Any]] = []
        for name in dict.fromkeys(STAGES.values()):
            if name in self._found:
                rows, seconds = self._found[name]
                rows = figures[-1]["rows"] if name == STAGES["finish"] and figures else rows
                figures.append({"stage": name, "rows": rows, "seconds": round(seconds, 2)})
        return figures


def _operators(summary: Any) -> Iterator[Any]:
    for parent in summary.parents:
        yield from _operators(parent)
    yield from summary.operators_stats
