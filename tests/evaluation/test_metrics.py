import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.evaluation import metrics
from balsa_ray.identity import rng


def values(references: list[str], parsed: list[str], statistic: metrics.Statistic) -> dict[str, float]:
    counts = metrics.yes_no_counts(references, parsed)
    return {name: round(float(value), 2) for name, value in statistic(counts.sum(0)).items()}


# Five are yes, five are no. Said: 4 rightly yes, 1 unparsed; 2 rightly no, 2 wrongly yes, 1 unparsed.
REFERENCES = ["yes"] * 5 + ["no"] * 5
PARSED = ["yes"] * 4 + [""] + ["no"] * 2 + ["yes"] * 2 + [""]


def test_official_figures_by_hand() -> None:
    # Precision of "no": 2 right of the 4 that were not parsed as yes. Recall: 2 of 5.
    assert values(REFERENCES, PARSED, metrics.official_yes_no_metrics) == {
        "accuracy": 60.0,
        "precision": 50.0,
        "recall": 40.0,
        "f1_score": 44.44,
        "yes_rate": 60.0,
        "unparsed": 20.0,
    }


def test_strict_figures_by_hand() -> None:
    # Precision of "no": 2 of 2. F1 of "no" 57.14; of "yes": precision 4/6, recall 4/5, F1 72.73; the mean of both.
    assert values(REFERENCES, PARSED, metrics.strict_yes_no_metrics) == {
        "accuracy": 60.0,
        "precision": 100.0,
        "recall": 40.0,
        "f1_score": 57.14,
        "weighted_f1": 64.94,
        "yes_rate": 60.0,
        "unparsed": 20.0,
    }


def test_weighted_f1_weighs_by_how_often_a_class_is_right() -> None:
    # "no" once in four, never found: its F1 is 0; "yes": precision 3/4, recall 1, F1 85.71, weight 3/4.
    assert values(["yes"] * 3 + ["no"], ["yes"] * 4, metrics.strict_yes_no_metrics)["weighted_f1"] == 64.29


def test_a_reference_that_is_neither_is_refused() -> None:
    with pytest.raises(ValueError, match="'maybe'"):
        metrics.yes_no_counts(["maybe"], ["yes"])


def test_accuracy_over_classes_weighs_each_alike() -> None:
    # 3 of 4 "a" and 0 of 1 "b" are right, one is unparsed; "c" is said and right nowhere, so no class of its own.
    counts = metrics.class_counts(["a"] * 4 + ["b"], ["a", "a", "a", "", "c"])
    found = {name: float(value) for name, value in metrics.class_metrics(counts.sum(0)).items()}
    assert found == {"accuracy": 60.0, "balanced_accuracy": 37.5, "unparsed": 20.0}
    # A resample without any "b" has only the other class to take the mean of.
    assert float(metrics.class_metrics(counts[:4].sum(0))["balanced_accuracy"]) == 75.0


def test_yes_no_scores_are_the_strict_figures_with_intervals_over_clips() -> None:
    found = metrics.yes_no_scores([(str(i // 2),) for i in range(10)], REFERENCES, PARSED, rng(0, "test"), 200)
    assert {name: round(metric["value"], 2) for name, metric in found.items()} == values(
        REFERENCES, PARSED, metrics.strict_yes_no_metrics
    )
    assert all(metric["low"] <= metric["value"] <= metric["high"] and metric["n"] == 10 for metric in found.values())


answers = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", ""])), min_size=1
)


def scores(rows: list[tuple[int, str, str]], seed: int = 0) -> dict[str, metrics.Metric]:
    counts = metrics.yes_no_counts([r[1] for r in rows], [r[2] for r in rows])
    summed = metrics.per_cluster([(str(r[0]),) for r in rows], counts)
    found = metrics.bootstrap(summed, metrics.strict_yes_no_metrics, len(rows), rng(seed, "test"), resamples=50)
    return metrics.written(found)


@given(answers)
def test_intervals_are_ordered_percentages(rows: list[tuple[int, str, str]]) -> None:
    for metric in scores(rows).values():
        assert 0 <= metric["low"] <= metric["high"] <= 100 + 1e-9
        assert 0 <= metric["value"] <= 100 + 1e-9
        assert metric["n"] == len(rows)


@given(answers)
def test_what_the_clips_are_called_changes_nothing(rows: list[tuple[int, str, str]]) -> None:
    renamed = [(clip + 7, reference, said) for clip, reference, said in rows]
    assert scores(renamed) == scores(rows)


@given(answers)
def test_parsed_and_unparsed_make_a_whole(rows: list[tuple[int, str, str]]) -> None:
    said_no = 100 * sum(row[2] == "no" for row in rows) / len(rows)
    metric = scores(rows)
    assert metric["yes_rate"]["value"] + metric["unparsed"]["value"] + said_no == pytest.approx(100)


def test_clips_are_drawn_and_not_answers() -> None:
    """Thirty equal answers about a clip tell no more than one: the interval is as wide as over clips."""
    once = [(clip, "yes", "yes" if clip % 2 else "no") for clip in range(40)]
    many = [row for row in once for _ in range(30)]
    narrow, wide = scores(once)["accuracy"], scores(many)["accuracy"]
    assert (wide["low"], wide["high"]) == (narrow["low"], narrow["high"])


def test_shares_are_each_of_their_own_answers() -> None:
    clusters = [("a",), ("a",), ("b",), ("b",)]
    right, second = [True, True, False, True], [False, True, False, True]
    figures = {"accuracy": (right, True), "second": (right, second), "nothing": (right, [False] * 4)}
    found = metrics.written(metrics.shares(clusters, figures, rng(0, "test"), 50))
    assert list(found) == ["accuracy", "second"]
    assert found["accuracy"] == {"value": 75, "low": 50, "high": 100, "n": 4}
    assert found["second"] == {"value": 100, "low": 100, "high": 100, "n": 2}
    assert metrics.shares([], {"accuracy": ([], True)}, rng(0, "test"), 50) == {}


def test_a_resample_without_what_a_figure_is_a_share_of_says_nothing_of_it() -> None:
    rare = np.arange(100) < 2
    found = metrics.shares([(str(i),) for i in range(100)], {"rare": (rare, rare)}, rng(0, "x"), 200)
    assert metrics.written(found["rare"]) == {"value": 100, "low": 100, "high": 100, "n": 2}


def test_every_figure_is_of_the_same_resamples() -> None:
    clips, generator = [(str(i // 2),) for i in range(60)], rng(0, "x")
    right = np.arange(60) % 3 == 0
    first = metrics.shares(clips, {"a": (right, True), "b": (~right, True)}, generator, 50)
    again = metrics.shares(clips, {"a": (right, True)}, generator, 50)
    assert np.array_equal(first["a"]["spread"], again["a"]["spread"])


def test_figures_are_rounded_as_python_prints_them() -> None:
    draw = rng(0, "rounded")
    figures = [2.675, 0.285, 3.125, 0.005, *(100 * (k / n) for n in range(1, 200) for k in draw.integers(0, n + 1, 5))]
    assert metrics.rounded(np.array(figures)).tolist() == [round(float(figure), 2) for figure in figures]
    assert float(metrics.rounded(np.array(2.675))) == 2.67  # NumPy's own: 2.68


def test_the_published_f1_is_made_from_rounded_figures() -> None:
    # Precision of no 1/3 as 33.33 and recall 1/7 as 14.29: 20.0034, where 33.3… and 14.28… make 20.
    parsed = ["no", *["yes"] * 6, "no", "no"]
    assert values(["no"] * 7 + ["yes"] * 2, parsed, metrics.official_yes_no_metrics)["f1_score"] == 20.0
    # Of 9 said no 5 rightly, of 8: 55.56 and 62.5 make 58.83; unrounded ones 58.82.
    references, parsed = ["no"] * 8 + ["yes"] * 4, ["no"] * 5 + ["yes"] * 3 + ["no"] * 4
    assert values(references, parsed, metrics.official_yes_no_metrics)["f1_score"] == 58.83
    assert values(references, parsed, metrics.strict_yes_no_metrics)["f1_score"] == 58.82
