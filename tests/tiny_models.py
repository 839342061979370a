"""Tiny checkpoints with random weights: every test that needs a model of the right shape, and no more, uses them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = (
    "a dog barking and a siren [Begin of audio] rain, wind [End of audio] What do you hear? I hear no cat meowing. "
    "Is there a sound of an engine in the audio? Describe everything, then name three sounds that are absent."
)
# A multiple of 64, which is what vLLM pads tables to: the placeholder behind it then has no padding row to land on.
VOCABULARY = 320
# Windows are of 2 s: the longest clip has three of them, the last one half full.
SHAPE: dict[str, Any] = {
    "num_query_tokens": 4,
    "audio_begin": "[Begin of audio]",
    "audio_end": " [End of audio]",
    "max_audio_seconds": 5.0,
}


@dataclass(frozen=True)
class TinyCheckpoints:
    """Directories of a tied Llama and of a Whisper classifier, as their names for `assemble`."""

    text: str
    audio: str


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """A Llama (64 wide, 2 blocks, tied) and a Whisper encoder (64 wide, 2 blocks, 2 s windows)."""
    root = tmp_path_factory.mktemp("tiny")
    return TinyCheckpoints(str(tiny_llama(root / "text")), str(tiny_whisper(root / "audio")))


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoints: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: an untrained connector of 4 query tokens between the tiny checkpoints."""
    from balsa_ray.model.modeling import BalsaForConditionalGeneration
    from balsa_ray.model.processing import BalsaProcessor

    path = tmp_path_factory.mktemp("tiny") / "model"
    names = tiny_checkpoints.text, tiny_checkpoints.audio
    model = BalsaForConditionalGeneration.assemble(*names, **SHAPE)
    randomised(model.audio_tower.connector)
    model.save_pretrained(path)
    BalsaProcessor.assemble(*names, **SHAPE).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path) -> Iterator[object]:
    """vLLM with the tiny model, shared by the session."""
    with tiny_vllm(tiny_model) as engine:
        yield engine


@contextmanager
def tiny_vllm(model: Path, **arguments: Any) -> Iterator[Any]:
    """vLLM with a model directory, at most 4 clips a prompt. The first of a process takes 20 s to start, others 4 s."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        # In this process: spawned ones would import torch and vLLM anew, 8 s each.
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Bound threads would bind this process, and whatever tests start after this, to a single core.
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setenv("VLLM_MEDIA_CONNECTOR", "balsa")
        from vllm import LLM

        from balsa_ray.vllm_plugin.register import check_registered

        check_registered()
        yield LLM(
            str(model),
            dtype="float32",
            max_model_len=256,
            max_num_seqs=8,
            enforce_eager=True,
            limit_mm_per_prompt={"audio": 4},
            disable_log_stats=False,
            **arguments,
        )


def tiny_llama(path: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Writes a random Llama with its tokenizer. Heads of 32: vLLM's attention on CPUs takes no smaller ones."""
    from transformers import LlamaConfig

    return tiny_llm(path, LlamaConfig, seed=seed, tie_word_embeddings=tied, num_key_value_heads=1)


def tiny_llm(
    path: Path, config_class: type, *, seed: int = 0, chat_template: str = CHAT_TEMPLATE, **config: Any
) -> Path:
    """Writes a random LLM of any family with the tiny tokenizer; `config` is what its family does otherwise."""
    import torch
    from transformers import AutoModelForCausalLM

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
        # Weights so wide that two tokens are never nearly equally likely.
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config_class(**(shape | config))).save_pretrained(path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(path)
    return path


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer whose chat template takes string content."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"]
    backend.train_from_iterator(
        [TEXT] * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=1,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # No padding token: Llama's own tokenizers have none.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    assert len(tokenizer) == VOCABULARY
    return tokenizer


def tiny_whisper(path: Path, *, seed: int = 0) -> Path:
    """Writes a random Whisper encoder with a classification head and its feature extractor."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

    config = WhisperConfig(
        vocab_size=8, d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=64, num_mel_bins=80, max_source_positions=50, max_target_positions=8,
        init_std=0.1, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    WhisperForAudioClassification(config).save_pretrained(path)
    WhisperFeatureExtractor(feature_size=80, sampling_rate=16_000, hop_length=320, chunk_length=2).save_pretrained(path)
    return path


def randomised(module: Any) -> Any:
    """Gives a module weights so wide that its input shows in its output: freshly made ones hardly let it through."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 1.0))
    return module


def tone(frequency: float, seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    """A sine at half of full scale, float32."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
