"""From what the runs answered to figures over seeds and clips, and to differences between arms.

Each run is scored on the same questions with the same resamples of clips. A resample of a comparison also draws seeds,
the same ones for both arms: so an interval holds what another sample of clips, and another of seeds, would change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.evaluation.answers import read_predictions
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.metrics import Metric, from_spread, p_value
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.report import split_scores
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.findings import forced_choice
from balsa_ray.identity import rng

Figures = dict[str, Metric]
SPLITS = ("random", "popular", "adversarial")
# Figure to task, split and metric. Of several splits the mean.
FIGURES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "accuracy": ("existence", SPLITS, "accuracy"),
    **{f"accuracy_{split}": ("existence", (split,), "accuracy") for split in SPLITS},
    "f1_no": ("existence", SPLITS, "f1_score"),
    "weighted_f1": ("existence", SPLITS, "weighted_f1"),
    "yes_rate": ("existence", SPLITS, "yes_rate"),
    "neither": ("existence", SPLITS, "unparsed"),
    "forced_accuracy": ("forced_choice", SPLITS, "accuracy"),
    "forced_yes_rate": ("forced_choice", SPLITS, "yes_rate"),
    "auc": ("forced_choice", SPLITS, "auc"),
    "described_f1": ("describe", ("all",), "f1_score"),
    "absent_error": ("name_absent", ("all",), "error"),
    "choice": ("choice", ("solvable",), "accuracy"),
    "choice_unanswerable": ("choice", ("absent_answer",), "accuracy"),
    "choice_unanswerable_conditional": ("choice", ("all",), "conditional_accuracy"),
    "count": ("reasoning", ("count",), "accuracy"),
    "order": ("reasoning", ("order",), "accuracy"),
    "which_recording": ("which_recording", ("all",), "accuracy"),
    "in_both_recordings": ("which_recording", ("both",), "accuracy"),
    "in_neither_recording": ("which_recording", ("neither",), "accuracy"),
}
"""Every figure of the findings, in percent."""


def figures_of(folder: Path, config: BenchmarkConfig, margins: Path | None = None) -> Figures:
    """Returns the figures of one run with their resamples.

    Args:
        folder: Output of its benchmark.
        config: Of that benchmark: the manifest and the settings.
        margins: What `forced_choice` wrote, if anything.
    """
    assert config.data_root is not None
    scores: dict[str, Any] = {}
    name: str
    for name in config.tasks:
        task = TASKS[name]
        planned = {q.id: q for q in task.plan(task.read(config.data_root), config.seed, **config.settings(name))}
        answers = _answers(folder / name / "predictions.jsonl", planned)
        scores[name] = {split: of["strict"] for split, of in split_scores(name, answers, config).items()}
    if margins is not None:
        scores["forced_choice"] = forced_choice.scores(
            forced_choice.read_margins(margins), config.seed, config.resamples
        )
    out = {}
    for figure, (name, splits, metric) in FIGURES.items():
        found = [scores[name][s][metric] for s in splits if metric in scores.get(name, {}).get(s, {})]
        if found:
            out[figure] = _mean(found)
    return out


def _answers(path: Path, planned: Mapping[str, Question]) -> list[Answer]:
    given = {answer.question.id: answer for answer in read_predictions(path)}
    return [Answer(question, given[name].response) for name, question in planned.items() if name in given]


def _mean(metrics: Sequence[Metric]) -> Metric:
    spread = np.mean([metric["spread"] for metric in metrics], axis=0)
    value = float(np.mean([metric["value"] for metric in metrics]))
    return from_spread(value, spread, sum(metric["n"] for metric in metrics))


@dataclass(frozen=True)
class Seeds:
    """The runs of one arm.

    Attributes:
        figures: Seed to the figures of its run.
    """

    figures: dict[int, Figures]

    def over_seeds(self, resamples: int) -> dict[str, Any]:
        """Returns each figure's mean over the seeds, with interval and the single seeds' values."""
        seeds = sorted(self.figures)
        out = {}
        for figure in self.figures[seeds[0]]:
            runs = [self.figures[seed][figure] for seed in seeds]
            out[figure] = _entry(runs, _crossed([run["spread"] for run in runs], resamples)) | {"n": runs[0]["n"]}
        return out

    def common(self, other: "Seeds") -> "Seeds":
        """Returns the runs of those seeds that another arm has too."""
        return Seeds({seed: figures for seed, figures in self.figures.items() if seed in other.figures})

    def minus(self, other: "Seeds", resamples: int) -> dict[str, Any]:
        """Returns how much greater each figure is than another arm's, on the seeds that both have, and its `p`."""
        seeds = sorted(self.figures.keys() & other.figures.keys())
        out = {}
        for figure in self.figures[seeds[0]] if seeds else ():
            pairs = [(self.figures[s][figure], other.figures[s][figure]) for s in seeds if figure in other.figures[s]]
            if len(pairs) < len(seeds):
                continue
            spread = _crossed([np.asarray(a["spread"]) - np.asarray(b["spread"]) for a, b in pairs], resamples)
            apart = [from_spread(a["value"] - b["value"], spread, a["n"]) for a, b in pairs]
            out[figure] = _entry(apart, spread) | {"p": p_value(spread)}
        return out


def _entry(runs: Sequence[Metric], spread: Any) -> dict[str, Any]:
    values = [run["value"] for run in runs]
    metric = from_spread(float(np.mean(values)), spread, runs[0]["n"])
    told = {key: metric[key] for key in ("value", "low", "high")}
    return told | {"seeds": len(runs), "by_seed": values}


def _crossed(spreads: Sequence[Any], resamples: int) -> Any:
    """Returns the means `[R]` over drawn seeds, of resamples of clips `[R]` of each seed."""
    drawn = rng(0, "seeds", len(spreads)).integers(0, len(spreads), size=(resamples, len(spreads)))
    return np.stack(spreads)[drawn, np.arange(resamples)[:, None]].mean(1)
