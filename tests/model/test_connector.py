"""The tower against references written here, with none of its code: parity with vLLM says nothing about it."""

import copy
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import TinyCheckpoints, randomised, tone
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from balsa_ray.audio.features import log_mel
from balsa_ray.model.connector import AudioTower, load_encoder
from balsa_ray.model.modeling import BalsaForConditionalGeneration


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> BalsaForConditionalGeneration:
    return BalsaForConditionalGeneration.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def features(tiny_checkpoints: TinyCheckpoints) -> Tensor:
    extractor = AutoFeatureExtractor.from_pretrained(tiny_checkpoints.audio)
    return torch.from_numpy(log_mel(extractor, [tone(300), tone(2_000, 0.4), tone(900, 2)]))


@torch.no_grad()
def test_taps_are_the_outputs_of_whispers_blocks(
    model: BalsaForConditionalGeneration, features: Tensor, tiny_checkpoints: TinyCheckpoints
) -> None:
    encoder = WhisperForAudioClassification.from_pretrained(tiny_checkpoints.audio).eval().encoder
    expected = encoder(features, output_hidden_states=True)
    taps = model.audio_tower.encode(features)
    assert model.config.taps == [1, 2]
    torch.testing.assert_close(taps[0], expected.hidden_states[1])
    torch.testing.assert_close(encoder.layer_norm(taps[1]), expected.last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [
        # As distil-whisper is cut from whisper: the encoder whole, two blocks of the decoder left.
        {"encoder_layers": 4, "decoder_layers": 2},
        # As large-v3: 128 mel bins.
        {"encoder_layers": 6, "decoder_layers": 6, "num_mel_bins": 128},
    ],
    ids=["distil", "large-v3"],
)
def test_any_whisper_is_read_at_quarter_depths(
    shape: dict[str, int], tiny_checkpoints: TinyCheckpoints, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    config = AutoConfig.from_pretrained(tiny_checkpoints.audio).to_dict() | shape
    whisper = WhisperForConditionalGeneration(WhisperConfig(**config)).eval()
    whisper.save_pretrained(tmp_path)
    extractor = WhisperFeatureExtractor(feature_size=config["num_mel_bins"], hop_length=320, chunk_length=2)
    extractor.save_pretrained(tmp_path)
    model = BalsaForConditionalGeneration.assemble(tiny_checkpoints.text, str(tmp_path), num_query_tokens=2)
    mels = torch.from_numpy(log_mel(extractor, [tone(300, 3)]))
    expected = whisper.model.encoder(mels, output_hidden_states=True).hidden_states
    taps = model.audio_tower.encode(mels)
    assert model.config.taps == sorted({round(shape["encoder_layers"] * quarter / 4) for quarter in (1, 2, 3, 4)})
    for tap, states in list(zip(model.config.taps, taps, strict=True))[:-1]:
        torch.testing.assert_close(states, expected[tap])
    torch.testing.assert_close(whisper.model.encoder.layer_norm(taps[-1]), expected[-1])


def reference_connector(state: dict[str, Tensor], taps: list[Tensor], heads: int, rms: float) -> Tensor:
    """The connector of one clip from its weights, in plain arithmetic, one tap, layer and head at a time."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor, eps: float) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(name: str, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{name}.attention.{part}", y) for part, y in [("query", x), ("key", memory), ("value", memory)]
        )
        size = q.shape[-1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            mixed.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ v[:, part])
        out = linear(f"{name}.output.dense", torch.cat(mixed, dim=-1))
        return layer_norm(f"{name}.output.LayerNorm", out + x, 1e-12)

    read = []
    for tap, memory in enumerate(taps):
        x = layer_norm("qformer.layernorm", state["queries"][tap], 1e-12)
        for layer in (f"qformer.encoder.layer.{i}" for i in range(2)):
            x = attention(f"{layer}.attention", x, x)
            x = attention(f"{layer}.crossattention", x, memory)
            hidden = torch.nn.functional.gelu(linear(f"{layer}.intermediate_query.dense", x))
            x = layer_norm(f"{layer}.output_query.LayerNorm", linear(f"{layer}.output_query.dense", hidden) + x, 1e-12)
        read.append(x)
    weights = state["tap_logits"].exp() / state["tap_logits"].exp().sum(0)
    mixed = sum(weights[tap][:, None] * x for tap, x in enumerate(read))
    out = linear("projection", layer_norm("norm", mixed, 1e-5))
    return out / out.pow(2).mean(-1, keepdim=True).sqrt() * rms


@torch.no_grad()
def test_connector_equals_plain_arithmetic(model: BalsaForConditionalGeneration, features: Tensor) -> None:
    tower = model.audio_tower
    taps = tower.encode(features)
    got = tower(features)
    assert got.shape == (3, 4, 64)
    for clip in range(3):
        expected = reference_connector(
            tower.connector.state_dict(), list(taps[:, clip]), model.config.qformer_heads, model.config.embedding_rms
        )
        torch.testing.assert_close(got[clip], expected, rtol=1e-4, atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 0.05, "clips must matter, or this shows nothing"


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_output_is_as_loud_as_the_llms_tokens(
    model: BalsaForConditionalGeneration, features: Tensor, scale: float
) -> None:
    tower = copy.deepcopy(model.audio_tower)
    tower.connector.projection.weight.mul_(scale)
    loudness = tower(features).pow(2).mean(-1).sqrt()
    tokens = model.language_model.get_input_embeddings().weight.pow(2).mean(-1).sqrt().mean()
    torch.testing.assert_close(loudness, tokens.expand_as(loudness), rtol=1e-4, atol=1e-6)


def test_initial_weights_depend_on_the_seed_alone(tiny_model: Path) -> None:
    config = BalsaForConditionalGeneration.from_pretrained(tiny_model).config

    def weights(torch_seed: int, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch_seed)
        connector = AudioTower(config).connector
        connector.initialize(seed)
        return connector.state_dict()

    first, again, other = weights(0, 7), weights(1, 7), weights(0, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projection.weight"], other["projection.weight"])
    assert all(torch.isfinite(value).all() for value in first.values())


def test_a_frozen_encoder_records_nothing(model: BalsaForConditionalGeneration, features: Tensor) -> None:
    embeddings = model.embed_audio(features)
    embeddings.sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert with_gradient == {name for name, _ in model.named_parameters() if ".connector." in name}


def test_features_of_another_length_are_refused(model: BalsaForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="log-mel of 90 frames, the encoder reads 100"):
        model.embed_audio(torch.zeros(1, 80, 90))


def test_the_encoder_is_found_in_every_kind_of_checkpoint(model: BalsaForConditionalGeneration, tmp_path: Path) -> None:
    """A seq2seq Whisper in shards, as hubs keep them, with another precision beside it."""
    torch.manual_seed(3)
    seq2seq = WhisperModel(WhisperConfig(**model.config.audio_config.to_dict()))
    seq2seq.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    randomised(seq2seq).save_pretrained(tmp_path / "other")
    shutil.copy(
        tmp_path / "other" / "model.safetensors", tmp_path / "sharded" / "model.fp32-00001-of-00001.safetensors"
    )
    torch.manual_seed(3)
    expected = WhisperModel(WhisperConfig(**model.config.audio_config.to_dict())).encoder.state_dict()
    loaded = load_encoder(tmp_path / "sharded", model.config, torch.float32).state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


def test_a_directory_without_an_encoder_is_named(
    model: BalsaForConditionalGeneration, tiny_checkpoints: TinyCheckpoints, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="not the weights of a Whisper encoder"):
        load_encoder(Path(tiny_checkpoints.text), model.config, torch.float32)
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_encoder(tmp_path, model.config, torch.float32)
