"""Metrics with 95 % intervals by a bootstrap over clips, all resamples at once in NumPy.

Answers about the same clip are not independent, so clips are drawn, not answers. Every metric here is a ratio of
counts: the counts of each clip are summed once, and a resample is a weighted sum of them.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from balsa_ray.config import UserError

Counts = npt.NDArray[np.float64]
Statistic = Callable[[Counts], dict[str, Counts]]
_CELLS_A_BLOCK = 4_000_000  # 32 MB of resampling weights at a time, whatever the number of clips


class Metric(TypedDict):
    """A metric in percent (0 to 100) with its 95 % interval and the number of answers it is made from.

    `spread` is its value in each resample, for differences between runs; it is not written.
    """

    value: float
    low: float
    high: float
    n: int
    spread: NotRequired[Counts]


def per_cluster(clusters: Sequence[tuple[str, ...]], counts: Counts) -> Counts:
    """Sums the counts of each cluster.

    Args:
        clusters: The cluster of each answer.
        counts: [answers, k].

    Returns:
        [clusters, k], in the order in which the clusters first occur.
    """
    index: dict[tuple[str, ...], int] = {}
    rows = np.fromiter((index.setdefault(cluster, len(index)) for cluster in clusters), np.intp, len(clusters))
    summed = np.zeros((len(index), counts.shape[1]))
    np.add.at(summed, rows, counts)
    return summed


def bootstrap(
    counts: Counts, statistic: Statistic, n: int, generator: np.random.Generator, resamples: int = 1000
) -> dict[str, Metric]:
    """Returns every metric of a statistic with its percentile interval.

    Args:
        counts: [clusters, k], what each cluster adds to each count.
        statistic: From counts [..., k] to named metrics [...] in percent.
        n: Number of answers, put beside every metric.
        generator: Source of the resamples (keyed by seed and task by the caller). It stays as it is: every figure of
            a split is of the same resamples, whichever others there are, so that those of two runs can be paired.
        resamples: Number of bootstrap resamples.
    """
    generator = deepcopy(generator)
    clusters = len(counts)
    if not clusters:
        return {}
    sums = np.empty((resamples, counts.shape[1]))
    block = max(1, _CELLS_A_BLOCK // clusters)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(0, clusters, size=(size, clusters)) + np.arange(size)[:, None] * clusters
        weights = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        sums[start : start + size] = weights @ counts
    values, spread = statistic(counts.sum(0)), statistic(sums)
    out: dict[str, Metric] = {}
    for name, value in values.items():
        out[name] = from_spread(float(value), spread[name], n)
    return out


def from_spread(value: float, spread: Counts, n: int) -> Metric:
    """Returns a metric with the interval of its resamples, of those in which it can be formed (is not NaN)."""
    known = spread[~np.isnan(spread)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high), "n": n, "spread": spread}


def p_value(spread: Counts) -> float:
    """Returns the two-sided p of a difference: how often one of the other sign, or none, is drawn, twice.

    One more than counted, as the difference itself is one of the draws: never 0.
    """
    known = spread[~np.isnan(spread)]
    tails = ((known <= 0).sum() + 1, (known >= 0).sum() + 1)
    return min(1.0, 2 * float(min(tails)) / (len(known) + 1))


def written(scores: Any) -> Any:
    """Returns scores as they are written: without the resamples."""
    if isinstance(scores, dict):
        return {name: written(value) for name, value in scores.items() if name != "spread"}
    return scores


def fraction(part: Counts, whole: Counts) -> Counts:
    """Returns part / whole, and 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def ratio(part: Counts, whole: Counts) -> Counts:
    """Returns part / whole in percent, and 0 where there is nothing to divide by."""
    return 100 * fraction(part, whole)


def share(part: Counts, whole: Counts) -> Counts:
    """Returns part / whole in percent, and NaN where there is nothing to divide by."""
    return np.where(whole > 0, ratio(part, whole), np.nan)


def f1(precision: Counts, recall: Counts) -> Counts:
    """Returns the harmonic mean of two percentages, and 0 where both are 0."""
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def rounded(figure: Counts, digits: int = 2) -> Counts:
    """Returns figures as a scorer prints them that rounds with Python's `round`; NumPy's differs at some halves."""
    return np.reshape([round(value, digits) for value in np.ravel(figure).tolist()], np.shape(figure))


def shares(
    clusters: Sequence[tuple[str, ...]],
    figures: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, Metric]:
    """Returns percentages that may each be of other answers, with the number of these as `n`.

    Args:
        clusters: The cluster of each answer.
        figures: Name to two flags of each answer: whether it counts, and whether it is one of those that this is a
            share of (True: all of them). A figure that is a share of none is left out.
        generator: Source of the resamples.
        resamples: Number of bootstrap resamples.
    """
    flags = {
        name: np.broadcast_arrays(*(np.asarray(flag, dtype=bool) for flag in both)) for name, both in figures.items()
    }
    kept = {name: (part & whole, whole) for name, (part, whole) in flags.items() if whole.any()}
    if not kept:
        return {}

    def statistic(counts: Counts) -> dict[str, Counts]:
        # A resample without any of those that a figure is a share of says nothing about it.
        return {name: share(counts[..., 2 * i], counts[..., 2 * i + 1]) for i, name in enumerate(kept)}

    counts = per_cluster(
        clusters, np.stack([column for both in kept.values() for column in both], axis=1).astype(float)
    )
    found = bootstrap(counts, statistic, len(clusters), generator, resamples)
    for name, (_, whole) in kept.items():
        found[name]["n"] = int(whole.sum())
    return found


def yes_no_counts(references: Sequence[str], parsed: Sequence[str]) -> Counts:
    """Returns [answers, 6]: is yes, is no, said yes, said no, rightly yes, rightly no.

    Args:
        references: `yes` or `no`.
        parsed: `yes`, `no` or "" (unparsed).

    Raises:
        UserError: If a reference is neither.
    """
    truth, said = np.asarray(references, dtype=str), np.asarray(parsed, dtype=str)
    is_yes, is_no = truth == "yes", truth == "no"
    if not (is_yes | is_no).all():
        wrong = truth[~(is_yes | is_no)][0]
        raise UserError(f"the reference of a yes/no question must be yes or no, not {str(wrong)!r}")
    said_yes, said_no = said == "yes", said == "no"
    columns = [is_yes, is_no, said_yes, said_no, is_yes & said_yes, is_no & said_no]
    return np.stack(columns, axis=1).astype(np.float64)


def official_yes_no_metrics(counts: Counts) -> dict[str, Counts]:
    """The benchmark's own five figures (Interspeech 2024), as its scorer prints them: the scored class is "No".

    Its precision divides by everything that was not parsed as yes, so an unparsed answer lowers it, and its F1 is made
    from the rounded precision and recall. Where it divides by nothing, which stops the published scorer, the figure
    is 0. `unparsed` is ours.
    """
    is_yes, is_no, said_yes, _, _, right_no = np.moveaxis(counts, -1, 0)
    n = is_yes + is_no
    precision, recall = rounded(ratio(right_no, n - said_yes)), rounded(ratio(right_no, is_no))
    return {
        "accuracy": rounded(ratio(counts[..., 4] + right_no, n)),
        "precision": precision,
        "recall": recall,
        "f1_score": rounded(f1(precision, recall)),
        "yes_rate": rounded(ratio(said_yes, n)),
        "unparsed": ratio(n - said_yes - counts[..., 3], n),
    }


def strict_yes_no_metrics(counts: Counts) -> dict[str, Counts]:
    """Accuracy, precision, recall and F1 of the "No" class, F1 weighted by support, yes-rate and unparsed.

    Precision divides by the answers that were parsed as no. An unparsed answer is wrong and lowers the recall of its
    class; `weighted_f1` is the mean of the two classes' F1, weighted by how often each is the right answer.
    """
    is_yes, is_no, said_yes, said_no, right_yes, right_no = np.moveaxis(counts, -1, 0)
    n = is_yes + is_no
    precision, recall = ratio(right_no, said_no), ratio(right_no, is_no)
    f1_no, f1_yes = f1(precision, recall), f1(ratio(right_yes, said_yes), ratio(right_yes, is_yes))
    return {
        "accuracy": ratio(right_yes + right_no, n),
        "precision": precision,
        "recall": recall,
        "f1_score": f1_no,
        "weighted_f1": (is_no * f1_no + is_yes * f1_yes) / np.maximum(n, 1),
        "yes_rate": ratio(said_yes, n),
        "unparsed": ratio(n - said_yes - said_no, n),
    }


def class_counts(references: Sequence[str], parsed: Sequence[str]) -> Counts:
    """Returns [answers, 1 + 2 classes]: unparsed, then for each class that is right anywhere: is it, rightly said.

    Args:
        references: The right class of each answer.
        parsed: What was said, "" if it could not be read.
    """
    truth, said = np.asarray(references, dtype=str), np.asarray(parsed, dtype=str)
    columns = [said == ""]
    for name in sorted(set(references)):
        columns += [truth == name, (truth == name) & (said == name)]
    return np.stack(columns, axis=1).astype(np.float64)


def class_metrics(counts: Counts) -> dict[str, Counts]:
    """Accuracy, its mean over the classes, and unparsed, of `class_counts`.

    A class that a resample has no clip of is left out of its mean.
    """
    of, right = counts[..., 1::2], counts[..., 2::2]
    n = of.sum(-1)
    return {
        "accuracy": ratio(right.sum(-1), n),
        "balanced_accuracy": ratio(right, of).sum(-1) / np.maximum((of > 0).sum(-1), 1),
        "unparsed": ratio(counts[..., 0], n),
    }


def yes_no_scores(
    clusters: Sequence[tuple[str, ...]],
    references: Sequence[str],
    parsed: Sequence[str],
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, Metric]:
    """Returns `strict_yes_no_metrics` with their intervals; the arguments are as for `per_cluster` and the others."""
    summed = per_cluster(clusters, yes_no_counts(references, parsed))
    return bootstrap(summed, strict_yes_no_metrics, len(parsed), generator, resamples)
