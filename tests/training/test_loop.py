import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from balsa_ray.config import UserError
from balsa_ray.training import batches, checkpoint, data, packing
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.loop import train, wants_gpu
from balsa_ray.training.metrics import METRICS, read
from balsa_ray.training.step import MicroBatch, adamw, optimise, prepare
from balsa_ray.training.validation import split
from balsa_ray.training.worker import DTYPES, make_processor, rate_at

Make = Callable[..., TrainConfig]
CONTRACT = {
    "step", "epoch", "loss", "lr", "grad_norm", "samples", "audio_seconds", "tokens", "tokens_per_second",
}  # fmt: skip


def bare_path(config: TrainConfig) -> list[float]:
    """The losses of the same run in bare PyTorch: one process, whole batches, clips encoded in every step."""
    from balsa_ray.audio.decode import decode
    from balsa_ray.audio.features import log_mel
    from balsa_ray.model.modeling import BalsaForConditionalGeneration

    samples, processor = encoded(config), make_processor(config)
    model = BalsaForConditionalGeneration.assemble(
        config.text_model,
        config.audio_model,
        **config.adapter.model_dump(),
        **config.trained_beside_adapter,
        dtype=DTYPES[config.precision],
        seed=config.seed,
    )
    prepare(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = adamw(trained, config.betas, config.weight_decay)
    losses = []
    for batch in batches.plan(config.seed, samples.ids, samples.kinds, config.stages, config.batch_size):
        tokens = samples.tokens[batch.rows]
        [[whole]] = packing.cut(batch.rows, tokens, tokens, world=1, budget=10_000)
        arrays = packing.collate(whole, samples.input_ids, samples.prompt_tokens)
        clips = [decode(audio) for audio in samples.clips(whole)]
        mels = torch.from_numpy(log_mel(processor.feature_extractor, clips))
        step = optimise(model, optimiser, [MicroBatch.of(arrays, [mels])], rate_at(config, batch), config.max_grad_norm)
        losses.append(step.loss)
    return losses


def encoded(config: TrainConfig) -> data.EncodedSamples:
    """The samples to train on."""
    table = data.read_samples(config.data)
    table, _ = data.encode(table, make_processor(config), data.clip_seconds(table), 512, 2.0)
    return data.EncodedSamples.of(split(table, config.seed, config.validation.share, 512)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_interrupted_and_resumed_equals_undisturbed_equals_bare_pytorch(
    train_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, disturbed = train_config(output=tmp_path / "a"), train_config(output=tmp_path / "b")
    train(undisturbed)
    lines = read(undisturbed.output / METRICS)
    losses = [line["loss"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert set(lines[0]) >= CONTRACT
    assert {line["samples"] for line in lines} == {8}
    assert lines[0]["audio_seconds"] == pytest.approx(8 * 0.2)
    assert losses == pytest.approx(bare_path(undisturbed), rel=1e-4)

    # A clip that first comes in step 7 has a fault that no header shows; the last checkpoint is that of step 5.
    samples = encoded(disturbed)
    plan = batches.plan(0, samples.ids, samples.kinds, disturbed.stages, disturbed.batch_size)
    clip = Path(samples.clips(next(islice(plan, 6, None)).rows)[0])
    sound = clip.read_bytes()
    soundfile.write(clip, np.full(3_200, math.nan, np.float32), 16_000, subtype="FLOAT")
    try:
        with pytest.raises(UserError, match=f"{clip}: has NaN") as error:
            train(disturbed)
    finally:
        clip.write_bytes(sound)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert not (disturbed.output / "model").exists()
    assert [folder.name for folder in (disturbed.output / "checkpoints").iterdir()] == ["step-5"]
    (disturbed.output / "checkpoints" / "partial-7").mkdir()

    train(disturbed)
    assert "5 of 12 steps done" in capsys.readouterr().out
    resumed = read(disturbed.output / METRICS)
    assert [line["step"] for line in resumed] == list(range(1, 13))
    assert [line["loss"] for line in resumed] == pytest.approx(losses, rel=1e-6)
    kept = {folder.name for folder in (disturbed.output / "checkpoints").iterdir()}
    assert kept == {"step-10", "step-12"}
    weights = [(config.output / "model" / "model.safetensors").read_bytes() for config in (undisturbed, disturbed)]
    assert weights[0] == weights[1]
    assert (disturbed.output / "report.html").exists()

    # Finished: reused by the same recipe, refused by another; neither needs a worker.
    before = (disturbed.output / METRICS).stat().st_mtime_ns
    train(disturbed)
    assert "is complete (12 steps of this recipe), reused" in capsys.readouterr().out
    assert (disturbed.output / METRICS).stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another recipe \(seed 0 -> 3\)"):
        train(disturbed.model_copy(update={"seed": 3}))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_lora_and_the_encoder_learn_as_in_bare_pytorch_and_are_exported_in_full(
    train_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(text_lora={"rank": 2}, train_encoder=True, encoder_cache="none")
    train(config)
    assert [line["loss"] for line in read(config.output / METRICS)] == pytest.approx(bare_path(config), rel=1e-4)
    folders = {file.parent.relative_to(config.output / "model").as_posix() for file in model_files(config)}
    assert folders == {".", "lora/text", "audio_model"}
    # The same run in full: nothing is trained again.
    train(config.model_copy(update={"export": "full"}))
    assert "12 of 12 steps done" in capsys.readouterr().out
    folders = {file.parent.relative_to(config.output / "model").as_posix() for file in model_files(config)}
    assert folders == {".", "text_model", "audio_model"}
    assert len(read(config.output / METRICS)) == 12


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_bfloat16_held_out_recordings_and_the_best_checkpoint(train_config: Make) -> None:
    config = train_config(
        precision="bf16",
        learning_rate=5e-4,
        deepspeed={"zero_stage": 3},
        encoder_cache="none",
        validation={"share": 0.2, "replies": 3},
        checkpoint_every=4,
        keep_checkpoints=9,
        peak_tflops=1.0,
        export_checkpoint="best",
    )
    train(config)
    lines = read(config.output / METRICS)
    # Activations are rounded to three digits, in other places in other micro-batches.
    assert [line["loss"] for line in lines] == pytest.approx(bare_path(config), rel=0.03)
    assert all(line["mfu"] == pytest.approx(line["tflops"]) for line in lines)
    measured = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(measured) == [4, 8, 12]
    replies = read(config.output / "replies.jsonl")
    assert [reply["step"] for reply in replies] == [4] * 3 + [8] * 3 + [12] * 3
    heard = {clip for sample in encoded(config).audio for clip in sample}
    assert all(set(reply["audio"]) - heard for reply in replies)

    best = checkpoint.read(config.output / "checkpoints" / f"step-{min(measured, key=measured.__getitem__)}")
    exported = load_file(config.output / "model" / "model.safetensors")
    assert exported
    assert all(torch.equal(weight, best.weights[name].bfloat16()) for name, weight in exported.items())

    # Nothing is trained again for another export; fewer steps than are done are refused.
    train(config.model_copy(update={"export_checkpoint": "last"}))
    last = checkpoint.read(config.output / "checkpoints" / "step-12")
    exported = load_file(config.output / "model" / "model.safetensors")
    assert all(torch.equal(weight, last.weights[name].bfloat16()) for name, weight in exported.items())
    (config.output / "report.json").unlink()
    with pytest.raises(UserError, match=f"max_steps=5: {config.output} has got to step 12; choose another output"):
        train(config.model_copy(update={"max_steps": 5}))


def model_files(config: TrainConfig) -> list[Path]:
    return list((config.output / "model").rglob("*.safetensors"))


def test_nothing_is_written_when_a_kind_has_no_samples(train_config: Make) -> None:
    config = train_config(stages=[{"name": "joint", "kinds": ["joint"], "steps": 3}])
    with pytest.raises(UserError, match="stage 'joint' wants kind 'joint', but no sample is of that kind"):
        train(config)
    assert not config.output.exists()


def test_samples_left_out_are_mentioned_when_a_kind_runs_dry(train_config: Make) -> None:
    with pytest.raises(UserError, match=r"no sample is of that kind \(128 samples don't fit the model\)"):
        train(train_config(max_length=8))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_nothing_is_written_when_there_are_no_gpus(train_config: Make) -> None:
    config = train_config(device="gpu")
    with pytest.raises(UserError, match="device=gpu, num_workers=2: 2 GPUs are needed"):
        train(config)
    assert not config.output.exists()


def test_workers_that_this_ray_can_not_hold_are_refused(train_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert wants_gpu(train_config(device="auto"), {"CPU": 8, "GPU": 2})
    assert not wants_gpu(train_config(device="auto"), {"CPU": 8})
    with pytest.raises(UserError, match="device=gpu, num_workers=2: 2 GPUs are needed, this Ray has 0"):
        wants_gpu(train_config(device="gpu"), {"CPU": 8})
    with pytest.raises(UserError, match="num_workers=2: 10 CPUs are needed, this Ray has 8"):
        wants_gpu(train_config(cpus_per_worker=5), {"CPU": 8})
