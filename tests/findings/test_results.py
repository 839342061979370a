import numpy as np
import pytest

from balsa_ray.evaluation.metrics import Metric
from balsa_ray.findings.results import Seeds

RESAMPLES = 2000


def metric(value: float, spread: float, key: int) -> Metric:
    drawn = value + spread * np.random.default_rng(key).normal(size=RESAMPLES)
    return {"value": value, "low": 0, "high": 0, "n": 10, "spread": drawn}


def seeds(values: list[float], spread: float = 1.0, shift: float = 0.0) -> Seeds:
    return Seeds({seed: {"accuracy": metric(value + shift, spread, 7)} for seed, value in enumerate(values)})


def test_a_mean_over_seeds_has_the_spread_of_clips_and_of_seeds() -> None:
    alike = seeds([60, 60, 60, 60]).over_seeds(RESAMPLES)["accuracy"]
    apart = seeds([50, 70, 55, 65], spread=0.0).over_seeds(RESAMPLES)["accuracy"]
    assert alike["value"] == apart["value"] == 60
    # The clips are the same for every seed, so more seeds don't narrow what they leave open.
    assert alike["high"] - alike["low"] == pytest.approx(2 * 1.96, rel=0.1)
    assert apart["high"] - apart["low"] == pytest.approx(2 * 1.96 * np.std([50, 70, 55, 65]) / 2, rel=0.15)
    assert apart["by_seed"] == [50, 70, 55, 65]


def test_what_is_hard_for_both_arms_cancels() -> None:
    one, other = seeds([50, 60, 70], spread=5.0), seeds([50, 60, 70], spread=5.0, shift=2.0)
    change = other.minus(one, RESAMPLES)["accuracy"]
    assert (change["value"], change["low"], change["high"]) == pytest.approx((2, 2, 2))
    assert change["p"] < 0.01
    assert one.minus(one, RESAMPLES)["accuracy"]["p"] == 1


def test_only_seeds_of_both_are_compared() -> None:
    change = seeds([51, 61]).minus(seeds([50, 60, 0]), RESAMPLES)["accuracy"]
    assert (change["value"], change["seeds"]) == (1, 2)


def test_a_change_of_sign_by_seed_is_not_significant() -> None:
    change = seeds([66, 54, 61, 59], spread=0).minus(seeds([60, 60, 60, 60], spread=0), RESAMPLES)["accuracy"]
    assert change["low"] < 0 < change["high"]
    assert change["p"] > 0.5
