from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinyCheckpoints

from balsa_ray.config import UserError, load
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.estimate import WIDTH, estimate, report
from balsa_ray.training.loop import train

Make = Callable[..., TrainConfig]
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if "\nstages:" in path.read_text("utf-8")]


def recipe(name: str, *overrides: str) -> TrainConfig:
    return load(TrainConfig, [str(CONFIGS / name), *overrides])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_recipe_has_a_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # no samples here
    config = load(TrainConfig, [str(path), "dry_run=true"])
    train(config)
    said = capsys.readouterr().out
    assert f"dry run: {config.total_steps:,} steps on {config.num_workers} workers; nothing is written" in said
    assert config.text_model in said
    assert f"* ZeRO {config.deepspeed.zero_stage} " in said
    assert "yet; assumed" in said
    assert ("hours, " in said) == (config.peak_tflops is not None)
    assert max(map(len, said.splitlines())) <= WIDTH
    assert not list(tmp_path.iterdir())


def test_the_paper_s_recipe_in_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = recipe("llama31_8b_whisper_small.yaml")
    numbers = estimate(config)
    count = numbers["parameters"]
    assert count["trained"] == count["adapter"]
    assert count["trained"] < 0.01 * count["total"]
    assert numbers["disk"]["model"] < 0.01 * 2 * count["text_model"]

    # 48 GiB of an RTX A6000 hold it; what can be sharded is next to nothing until the frozen weights are: stage 0 takes
    # no more than the others, which have a copy of what is trained and a buffer.
    batch = numbers["micro_batch"]
    sums = [row["weights"] + row["gradients"] + row["optimizer"] + batch["activations"] for row in numbers["memory"]]
    zero0, zero1, zero2, zero3 = sums[:4]
    assert zero3 < 0.9 * zero2 < zero2 < zero1 < 40 * 2**30
    assert zero0 == pytest.approx(zero1, rel=0.01)

    time = numbers["time"]
    assert (time["steps"], time["samples"]) == (65_000, 16 * 65_000)
    assert time["hours"] == pytest.approx(time["flops"] / (0.4 * 2 * 154.8e12) / 3600)
    assert time["samples_per_second"] == pytest.approx(16 * 65_000 / time["hours"] / 3600)
    # 1,040,000 samples of some 240 tokens, at four operations a weight and token, and an encoder of 5 %.
    assert time["flops"] == pytest.approx(1.04e6 * 240 * 4 * 7.5e9 * 1.05, rel=0.1)
    assert 0.03 < time["encoder_share"] < 0.07
    assert numbers["disk"]["encoder_cache_clip"] == 4 * 1500 * 768 * 2


def test_twice_the_workers_take_half_the_time(train_config: Make) -> None:
    one, two = (estimate(train_config(num_workers=number, peak_tflops=1.0))["time"] for number in (1, 2))
    assert one["flops"] == two["flops"]
    assert one["hours"] == pytest.approx(2 * two["hours"])


def test_samples_that_are_there_are_counted(train_config: Make) -> None:
    config = train_config(max_steps=9)
    numbers = estimate(config)
    single, multi = numbers["time"]["stages"]
    assert (single["steps"], multi["steps"]) == (8, 1)
    assert single["epochs"] == 1.0  # 8 steps of 8 rows, 64 samples
    assert multi["epochs"] == pytest.approx(0.5 * 8 / 64)
    # 64 clips, two taps of 50 positions of 64 numbers in float32.
    assert numbers["disk"]["encoder_cache"] == 64 * 2 * 50 * 64 * 4
    assert numbers["time"]["hours"] is None
    assert "name its peak" in report(config, numbers)
    assert not config.output.exists()


def test_what_is_estimated_is_what_is_saved(
    train_config: Make, tiny_checkpoints: TinyCheckpoints, tmp_path: Path
) -> None:
    config = train_config(adapter={"num_query_tokens": 16, "qformer_layers": 3})
    model = BalsaForConditionalGeneration.assemble(
        tiny_checkpoints.text, tiny_checkpoints.audio, **config.adapter.model_dump()
    )
    model.save_pretrained(tmp_path / "model")
    numbers = estimate(config)
    parameters = list(model.parameters())
    assert numbers["parameters"]["total"] == sum(parameter.numel() for parameter in parameters)
    assert numbers["parameters"]["trained"] == sum(weight.numel() for weight in parameters if weight.requires_grad)
    assert numbers["memory"][0]["weights"] == sum(parameter.nbytes for parameter in parameters)
    saved = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert numbers["disk"]["model"] == pytest.approx(saved, rel=0.1)


def test_models_that_are_not_known_are_one_line(train_config: Make) -> None:
    with pytest.raises(UserError, match="nobody/nothing: neither a directory here nor in the Hugging Face cache"):
        train(train_config(text_model="nobody/nothing", dry_run=True))
    with pytest.raises(UserError, match=r"taps \[9\]: the encoder has blocks 1 to 2"):
        train(train_config(adapter={"taps": [9]}, dry_run=True))
