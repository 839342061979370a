from collections.abc import Callable
from pathlib import Path

import pytest

from balsa_ray.config import load
from balsa_ray.training.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if "\nstages:" in path.read_text("utf-8")]


def single(**values: object) -> list[dict[str, object]]:
    return [{"name": "a", "kinds": ["present"], "steps": 9} | values]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_workers": 3}, "batch_size 8 is no multiple of num_workers 3"),
        ({"warmup_steps": 4}, "stage 'multi' has 4 steps, warmup_steps is 4"),
        ({"stages": single(replay=0.1)}, "the first stage has nothing to replay"),
        ({"stages": single() + single()}, "names must differ"),
        ({"stages": single(kinds=["missing"])}, "present"),
    ],
)
def test_what_can_not_be_is_refused(train_config: Callable[..., TrainConfig], values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_config(**values)


def test_max_steps_cuts_the_run_short(train_config: Callable[..., TrainConfig]) -> None:
    assert train_config().total_steps == 12
    assert train_config(max_steps=7).total_steps == 7
    assert train_config(max_steps=70).total_steps == 12


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_recipes_are_valid(recipe: Path) -> None:
    config = load(TrainConfig, [str(recipe), "data=elsewhere"])
    assert config.data == [Path("elsewhere")]
    assert load(TrainConfig, [str(recipe), "data=[a,b]"]).data == [Path("a"), Path("b")]
