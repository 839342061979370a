import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import soundfile
import torch
from ray import cloudpickle
from tiny_models import TinyCheckpoints, tone

from balsa_ray.audio import decode
from balsa_ray.config import UserError
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor
from balsa_ray.training import loop
from balsa_ray.training.batches import GlobalBatch
from balsa_ray.training.clips import clip_cache
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.engine import Losses, StepOutcome
from balsa_ray.training.loop import log_mels
from balsa_ray.training.state import TrainState, trained_parameters
from balsa_ray.training.step import encode_clip
from balsa_ray.training.worker import check_finite, export, make_processor, rate_at

Make = Callable[..., TrainConfig]


@pytest.fixture
def model(tiny_checkpoints: TinyCheckpoints) -> BalsaForConditionalGeneration:
    return BalsaForConditionalGeneration.assemble(tiny_checkpoints.text, tiny_checkpoints.audio, num_query_tokens=4)


def no_clips(audio: str) -> torch.Tensor:
    raise AssertionError(audio)


def state_of(model: BalsaForConditionalGeneration) -> TrainState:
    return TrainState(1, {name: weight.detach().clone() for name, weight in trained_parameters(model).items()}, {})


def test_clips_become_log_mels_or_what_the_encoder_makes_of_them(
    model: BalsaForConditionalGeneration, train_config: Make, synthesis_output: Path, tmp_path: Path
) -> None:
    tower, audio = model.audio_tower, str(synthesis_output / "3.wav")
    prepare = log_mels(train_config().audio_model, 300.0)
    cache = clip_cache(model, prepare, train_config(encoder_cache="none"))
    mels = cache.request(audio).result()
    assert mels.shape == (1, 80, 100)
    encoded = clip_cache(model, prepare, train_config(encoder_cache="memory"))
    states = encoded.request(audio).result()
    torch.testing.assert_close(states, encode_clip(tower, mels))
    soundfile.write(tmp_path / "long.wav", tone(300, 4.5), 16_000)
    windows = cache.request(str(tmp_path / "long.wav")).result()
    assert windows.shape == (3, 80, 100)
    torch.testing.assert_close(
        encoded.request(str(tmp_path / "long.wav")).result(),
        torch.cat([encode_clip(tower, window[None]) for window in windows]),
    )
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"broken\.wav: not readable as audio") as error:
        cache.request(str(tmp_path / "broken.wav")).result()
    assert error.value.exit_code == 1


def test_a_model_trained_on_encoded_clips_is_exported_whole(
    model: BalsaForConditionalGeneration, train_config: Make, tmp_path: Path
) -> None:
    processor = make_processor(train_config())
    clip_cache(model, no_clips, train_config(encoder_cache="memory"))
    with torch.no_grad():
        model.audio_tower.connector.projection.bias.fill_(0.5)
    for _ in range(2):  # a longer run replaces the model of a shorter one
        export(model, processor, state_of(model), train_config(output=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    modes = {path.suffix: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes[".safetensors"] == modes[".json"], "who may read the one may read the other"
    loaded = BalsaForConditionalGeneration.from_pretrained(tmp_path / "model")
    trained = model.audio_tower.connector.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in loaded.audio_tower.connector.state_dict().items())
    assert BalsaProcessor.from_pretrained(tmp_path / "model").clip_ids(2) == processor.clip_ids(2)


def test_a_full_export_holds_the_encoder_that_training_had_moved_into_its_cache(
    model: BalsaForConditionalGeneration, tiny_checkpoints: TinyCheckpoints, train_config: Make, tmp_path: Path
) -> None:
    processor = make_processor(train_config())
    encoder = model.audio_tower.encoder.state_dict()
    clip_cache(model, no_clips, train_config(encoder_cache="memory"))
    export(model, processor, state_of(model), train_config(output=tmp_path, export="full"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = BalsaForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert loaded.config.text_model is loaded.config.audio_model is None
    assert all(torch.equal(value, encoder[key]) for key, value in loaded.audio_tower.encoder.state_dict().items())


@pytest.mark.parametrize(("loss", "norm", "said"), [(math.nan, 1.0, "the loss is nan"), (1.0, math.inf, "norm is inf")])
def test_a_step_that_teaches_nothing_ends_the_run(loss: float, norm: float, said: str) -> None:
    check_finite(6, StepOutcome(Losses(1.0, {}), 1.0, ()))
    with pytest.raises(UserError, match=f"step 7: .*{said}") as error:
        check_finite(7, StepOutcome(Losses(loss, {}), norm, ()))
    assert error.value.exit_code == 1


def test_a_recording_that_can_not_be_read_at_the_moment_is_tried_again(
    train_config: Make, synthesis_output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, tries = str(synthesis_output / "3.wav"), []

    def opened(reference: object) -> object:
        tries.append(reference)
        if len(tries) < 3:
            raise TimeoutError("the file system doesn't answer")
        return nullcontext(audio)

    monkeypatch.setattr(decode, "opened", opened)
    monkeypatch.setattr(loop, "RETRY_AFTER_SECONDS", (0.0, 0.0))
    prepare = log_mels(train_config().audio_model, 300.0)
    assert prepare(audio).shape == (1, 80, 100)
    tries.clear()
    monkeypatch.setattr(loop, "RETRY_AFTER_SECONDS", (0.0,))
    with pytest.raises(UserError, match=r"3\.wav: not readable as audio \(the file system doesn't answer\)"):
        prepare(audio)


def test_what_clip_workers_are_started_with_is_small(train_config: Make) -> None:
    assert len(cloudpickle.dumps(log_mels(train_config().audio_model, 300.0))) < 10_000


def test_every_stage_has_its_own_schedule_and_peak(train_config: Make) -> None:
    stages = [stage.model_dump() for stage in train_config().stages]
    stages[1]["learning_rate"] = 5e-4
    config = train_config(stages=stages)
    batches = [
        GlobalBatch(step, *place, epoch=0.0, rows=None) for step, place in ((2, (0, 2)), (9, (1, 1)), (10, (1, 2)))
    ]
    assert [rate_at(config, batch) for batch in batches] == [2e-3, 2.5e-4, 5e-4]
