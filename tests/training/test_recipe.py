from collections.abc import Callable
from pathlib import Path

import pytest

from balsa_ray.config import UserError
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.recipe import NOT_IN_RECIPE, RECIPE, check, fingerprint, recipe_of, write_json

Make = Callable[..., TrainConfig]


def test_recipe_tells_what_is_computed_not_where_or_how_fast(train_config: Make, tmp_path: Path) -> None:
    recipe = recipe_of(train_config(), "data")
    moved = {
        "output": tmp_path,
        "num_workers": 1,
        "micro_batch_tokens": 64,
        "gradient_checkpointing": True,
        "max_steps": 3,
        "encoder_cache": "none",
    }
    assert recipe_of(train_config(**moved), "data") == recipe
    assert fingerprint(recipe_of(train_config(seed=1), "data")) != fingerprint(recipe)
    assert fingerprint(recipe_of(train_config(), "other data")) != fingerprint(recipe)
    assert set(TrainConfig.model_fields) >= NOT_IN_RECIPE
    weighted = [recipe_of(train_config(data={"a": weight, "b": 1}), "data") for weight in (1, 2)]
    assert len({fingerprint(one) for one in [recipe, *weighted]}) == 3


def test_an_output_of_another_recipe_is_refused_by_what_changed(train_config: Make, tmp_path: Path) -> None:
    old = recipe_of(train_config(), "data")
    check(tmp_path, old)
    write_json(tmp_path / RECIPE, old)
    check(tmp_path, old)
    stages = [stage.model_dump() for stage in train_config().stages]
    stages[1]["replay"] = 0.25
    with pytest.raises(UserError) as error:
        check(tmp_path, recipe_of(train_config(learning_rate=0.5, stages=stages), "data"))
    changed = "learning_rate 0.002 -> 0.5, stages.1.replay 0.5 -> 0.25"
    assert str(error.value) == f"{tmp_path} holds a run of another recipe ({changed}); choose another output"
