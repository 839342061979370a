import numpy as np
import pytest

from balsa_ray.evaluation.metrics import Metric
from balsa_ray.findings import forced_choice
from balsa_ray.findings.results import SPLITS, Seeds, _mean, estimate

RESAMPLES = 2000


def metric(value: float, spread: float, key: int) -> Metric:
    drawn = value + spread * np.random.default_rng(key).normal(size=RESAMPLES)
    return {"value": value, "low": 0, "high": 0, "n": 10, "spread": drawn}


def seeds(values: list[float], spread: float = 1.0, shift: float = 0.0) -> Seeds:
    return Seeds({seed: {"accuracy": metric(value + shift, spread, 7)} for seed, value in enumerate(values)})


def test_a_mean_over_seeds_has_the_variance_of_clips_and_of_seeds() -> None:
    values = [50.0, 70.0, 55.0, 65.0]
    alike, apart = seeds([60, 60, 60, 60]).over_seeds(), seeds(values, spread=0.0).over_seeds()
    assert alike["accuracy"]["value"] == apart["accuracy"]["value"] == 60
    # The clips are the same for every seed, so more seeds don't narrow what they leave open.
    assert alike["accuracy"]["high"] - 60 == pytest.approx(1.96, rel=0.05)
    # Of seeds alone: Student's t, three degrees of freedom.
    assert apart["accuracy"]["high"] - 60 == pytest.approx(3.182 * np.std(values, ddof=1) / 2, rel=1e-3)
    assert apart["accuracy"]["by_seed"] == values


def test_the_interval_of_few_seeds_holds_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        found = estimate((0.2 * draw.normal() + draw.normal(size=3)).tolist(), 0.2 * draw.normal(size=200))
        held += found["low"] < 0 < found["high"]
    assert 0.91 < held / 1000 < 0.98  # without Student's t it is 0.86


def test_what_is_hard_for_both_arms_cancels() -> None:
    one, other = seeds([50, 60, 70], spread=5.0), seeds([50, 60, 70], spread=5.0, shift=2.0)
    change = other.minus(one)["accuracy"]
    assert (change["value"], change["low"], change["high"]) == pytest.approx((2, 2, 2))
    assert change["p"] < 0.01
    assert one.minus(one)["accuracy"]["p"] == 1


def test_only_seeds_of_both_are_compared() -> None:
    change = seeds([51, 61]).minus(seeds([50, 60, 0]))["accuracy"]
    assert (change["value"], change["seeds"]) == (1, 2)


def test_a_change_of_sign_by_seed_is_not_significant() -> None:
    change = seeds([66, 54, 61, 59], spread=0).minus(seeds([60, 60, 60, 60], spread=0))["accuracy"]
    assert change["low"] < 0 < change["high"]
    assert change["p"] > 0.5


def test_three_splits_about_the_same_clips_tell_no_more_than_one() -> None:
    rows = [
        {"id": f"{split}-{i}", "split": split, "clip": str(i // 2), "reference": "yes" if i % 2 else "no", "margin": m}
        for split in SPLITS
        for i, m in enumerate(np.random.default_rng(1).normal(size=100))
    ]
    found = forced_choice.scores(rows, 0, 200)
    whole = _mean([found[split]["accuracy"] for split in SPLITS])
    assert np.array_equal(whole["spread"], found["random"]["accuracy"]["spread"])
