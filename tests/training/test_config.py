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
        ({"num_workers": 9}, "batch_size 8 gives 9 workers less than a sample each"),
        ({"num_workers": (4, 2)}, "the least stands first"),
        ({"deepspeed": {"zero_stage": 0, "offload_optimizer": True}}, "needs deepspeed.zero_stage 1, 2 or 3"),
        ({"export_checkpoint": "best"}, "export_checkpoint best: needs validation.share"),
        (
            {"deepspeed": {"zero_stage": 3}, "train_encoder": True, "encoder_cache": "none"},
            "doesn't go with train_encoder",
        ),
        ({"warmup_steps": 4}, "stage 'multi' has 4 steps, warmup_steps is 4"),
        ({"stages": single(replay=0.1)}, "the first stage has nothing to replay"),
        ({"stages": single() + single()}, "names must differ"),
        ({"stages": single(kinds=["missing"])}, "present"),
        ({"train_encoder": True}, "encoder_cache: the outputs of an encoder that is trained change; set it to none"),
        ({"audio_lora": {}}, "encoder_cache: the outputs of an encoder that is trained change; set it to none"),
        ({"audio_lora": {}, "train_encoder": True, "encoder_cache": "none"}, "by updates, not both"),
        ({"stages": single(kinds={"missing": 1})}, "present"),
        ({"stages": single(kinds={"present": -1})}, "greater than or equal to 0"),
        ({"stages": single(kinds={"present": 0})}, "all weights are 0"),
        ({"stages": single(kinds={})}, "at least 1 item"),
        ({"data": {"a": 0}}, "all weights are 0"),
        ({"data": []}, "at least 1 item"),
    ],
)
def test_what_can_not_be_is_refused(train_config: Callable[..., TrainConfig], values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_config(**values)


def test_weights_are_kept_and_those_of_0_dropped(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(data={"a": 2, "b": 0, "c": 1}, stages=single(kinds={"present": 1, "absent": 0}))
    assert config.data == {Path("a"): 2, Path("c"): 1}
    assert config.source_weights == [2, 1]
    assert config.stages[0].kinds == {"present": 1}
    assert train_config(data=["a", "b"]).source_weights == [1]


def test_max_steps_cuts_the_run_short(train_config: Callable[..., TrainConfig]) -> None:
    assert train_config().total_steps == 12
    assert train_config(max_steps=7).total_steps == 7
    assert train_config(max_steps=70).total_steps == 12


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_recipes_are_valid(recipe: Path) -> None:
    config = load(TrainConfig, [str(recipe), "data=elsewhere"])
    assert config.data == [Path("elsewhere")]
    assert load(TrainConfig, [str(recipe), "data=[a,b]"]).data == [Path("a"), Path("b")]
    weighted = load(TrainConfig, [str(recipe), "data={runs/a: 2, runs/b: 1}"])
    assert weighted.data == {Path("runs/a"): 2, Path("runs/b"): 1}


def test_what_is_trained_can_be_said_on_the_command_line() -> None:
    recipe = [str(CONFIGS / "llama31_8b_whisper_small.yaml"), "data=x"]
    assert load(TrainConfig, recipe).trained_beside_adapter == {
        "text_lora": None, "audio_lora": None, "train_encoder": False
    }  # fmt: skip
    config = load(TrainConfig, [*recipe, "text_lora.rank=8", "text_lora.target_modules=[q_proj,v_proj]", "export=full"])
    assert config.trained_beside_adapter["text_lora"] == {
        "rank": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]
    }  # fmt: skip
    assert config.export == "full"
