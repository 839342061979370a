from typing import Any

import numpy as np
import pytest

from balsa_ray.findings import forced_choice


def rows(margins: list[float], truth: list[str], clips: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "split": "random", "clip": clip, "reference": reference, "margin": margin}
        for i, (margin, reference, clip) in enumerate(zip(margins, truth, clips, strict=True))
    ]


def auc(margins: list[float], truth: list[str]) -> float:
    """By its definition: every pair of a yes and a no, ties a half."""
    yes = [m for m, t in zip(margins, truth, strict=True) if t == "yes"]
    no = [m for m, t in zip(margins, truth, strict=True) if t == "no"]
    return float(np.mean([(a > b) + (a == b) / 2 for a in yes for b in no]))


def test_figures_by_hand() -> None:
    found = forced_choice.scores(rows([1, -1, 0.5, -2], ["yes", "yes", "no", "no"], list("aabb")), 0, 50)["random"]
    assert (found["accuracy"]["value"], found["yes_rate"]["value"], found["auc"]["value"]) == (50, 50, 75)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_that_of_all_pairs_in_every_resample(seed: int) -> None:
    draw = np.random.default_rng(seed)
    margins = draw.integers(-3, 4, 30).astype(float).tolist()  # many ties
    truth = draw.choice(["yes", "no"], 30).tolist()
    weights = draw.integers(0, 3, (4, 30)).astype(float)
    found = forced_choice._auc(weights, np.array(truth) == "yes", np.array(margins))
    for row, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(30), row.astype(int))
        assert value == pytest.approx(auc([margins[i] for i in drawn], [truth[i] for i in drawn]))


def test_resamples_of_two_models_are_paired() -> None:
    truth, clips = ["yes", "no"] * 20, [str(i // 4) for i in range(40)]
    draw = np.random.default_rng(0)
    margins = draw.normal(size=40)
    one, other = (forced_choice.scores(rows(of.tolist(), truth, clips), 0, 100)["random"] for of in (margins, -margins))
    # The other one says the contrary: what one gains by the clips that are drawn, the other loses.
    assert np.allclose(one["accuracy"]["spread"], 100 - other["accuracy"]["spread"])
    assert one["accuracy"]["low"] < one["accuracy"]["value"] < one["accuracy"]["high"]
