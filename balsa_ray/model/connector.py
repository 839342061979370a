"""From log-mel to LLM embeddings: Whisper encoder taps, a Q-Former, a projection.

One torch module, used as it is by transformers and by vLLM, so that the two can't drift apart.

Shapes: W windows of clips, M mel bins, F mel frames, S encoder positions, T taps, N query tokens, D encoder width,
H LLM width.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from balsa_ray.identity import rng
from balsa_ray.model.configuration import BalsaConfig

# Whisper as seq2seq (`model.encoder.conv1…`), as a bare model or with a classification head (`encoder.conv1…`).
ENCODER_KEY = re.compile(r"(model\.)?encoder\.")


class Connector(nn.Module):
    """The trained part: learned queries read the taps through one shared Q-Former, then are mixed and projected.

    Every tap has its own N queries; a softmax per query weighs the taps (DeSTA2, DeSTA2.5-Audio). Every output vector
    is scaled to the root mean square of the LLM's own token embeddings.
    """

    def __init__(self, config: BalsaConfig) -> None:
        super().__init__()
        width = config.audio_config.d_model
        self.embedding_rms = config.embedding_rms
        self.initializer_range = config.initializer_range
        self.queries = nn.Parameter(torch.empty(len(config.taps), config.num_query_tokens, width))
        self.tap_logits = nn.Parameter(torch.empty(len(config.taps), config.num_query_tokens))
        self.qformer = Blip2QFormerModel._from_config(
            Blip2QFormerConfig(
                hidden_size=width,
                encoder_hidden_size=width,
                num_hidden_layers=config.qformer_layers,
                num_attention_heads=config.qformer_heads,
                intermediate_size=config.qformer_intermediate_size,
                cross_attention_frequency=1,
                # No dropout: a resumed run then needs no generator state, and a frozen LLM regularises enough.
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                initializer_range=config.initializer_range,
            ),
            attn_implementation="sdpa",
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.text_config.hidden_size)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draws every weight from (seed, parameter name): the same on any device, whatever ran before."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:  # a shape without values
                continue
            if name.endswith("bias") or name == "tap_logits":
                parameter.zero_()
            elif "norm" in name.lower():
                parameter.fill_(1.0)
            else:
                std = 1.0 if name == "queries" else self.initializer_range
                values = rng(seed, "connector", name).standard_normal(tuple(parameter.shape), dtype="float32")
                parameter.copy_(torch.from_numpy(values * std))

    def forward(self, states: Tensor) -> Tensor:
        """Returns tapped states `[T, W, S, D]` as LLM embeddings `[W, N, H]`, in the connector's own dtype."""
        taps, windows, positions, width = states.shape
        queries = self.queries[:, None].expand(-1, windows, -1, -1)  # [T, W, N, D]
        read = self.qformer(
            query_embeds=queries.reshape(taps * windows, -1, width),
            encoder_hidden_states=states.reshape(taps * windows, positions, width).to(queries.dtype),
        ).last_hidden_state
        weights = self.tap_logits.softmax(dim=0)[:, None, :, None]  # [T, 1, N, 1]
        mixed = (read.view(taps, windows, -1, width) * weights).sum(dim=0)
        projected = self.projection(self.norm(mixed))
        scaled = self.embedding_rms * nn.functional.rms_norm(projected.float(), projected.shape[-1:], eps=1e-8)
        return scaled.to(projected.dtype)


class AudioTower(nn.Module):
    """A Whisper encoder, read at some of its blocks, and the connector behind it."""

    def __init__(self, config: BalsaConfig, encoder: WhisperEncoder | None = None) -> None:
        super().__init__()
        self.taps = list(config.taps)
        self.encoder = encoder or WhisperEncoder._from_config(config.audio_config)
        self.connector = Connector(config)

    def train_encoder(self) -> None:
        """Lets the encoder learn, up to the last tap. Its positions stay: Whisper's are sines and never learn."""
        for part in (self.encoder.conv1, self.encoder.conv2, *self.encoder.layers[: max(self.taps)]):
            part.requires_grad_(True)

    def encode(self, input_features: Tensor) -> Tensor:
        """Runs the encoder's blocks up to the last tap.

        Whisper attends to its padded window without a mask, and so does this: a window is always full.

        Args:
            input_features: Log-mel `[W, M, F]`, padded to the encoder's window.

        Returns:
            The tapped blocks' outputs `[T, W, S, D]`, before the encoder's final LayerNorm.

        Raises:
            ValueError: If F is not the encoder's window.
        """
        encoder = self.encoder
        window = 2 * encoder.max_source_positions
        if input_features.shape[-1] != window:
            raise ValueError(f"log-mel of {input_features.shape[-1]} frames, the encoder reads {window}")
        features = input_features.to(encoder.conv1.weight.device, encoder.conv1.weight.dtype)
        hidden = nn.functional.gelu(encoder.conv1(features))
        # The table is called, not read: under ZeRO 3 a weight is only there while its module runs.
        places = encoder.embed_positions(torch.arange(encoder.max_source_positions, device=features.device))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2) + places
        tapped = {}
        for block, layer in enumerate(encoder.layers[: max(self.taps)], start=1):
            hidden = layer(hidden, None)
            tapped[block] = hidden
        return torch.stack([tapped[tap] for tap in self.taps])

    def forward(self, input_features: Tensor) -> Tensor:
        """Returns log-mels `[W, M, F]` as LLM embeddings `[W, N, H]`."""
        # A frozen encoder's activations are never needed again; recording them would double the memory.
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            states = self.encode(input_features)
        return self.connector(states)


def load_encoder(path: Path, config: BalsaConfig, dtype: torch.dtype) -> WhisperEncoder:
    """Loads the encoder's weights, and nothing else, out of a Whisper checkpoint of any kind.

    Args:
        path: A directory with safetensors of a Whisper model: seq2seq, bare, or with a classification head.
        config: Its `audio_config` describes the checkpoint.
        dtype: Of the loaded weights.

    Raises:
        ValueError: If the directory's weights are not those of such an encoder.
    """
    from safetensors import safe_open

    with torch.device("meta"):
        encoder = WhisperEncoder._from_config(config.audio_config, attn_implementation="sdpa")
    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                if prefix := ENCODER_KEY.match(key):
                    state[key[prefix.end() :]] = tensors.get_tensor(key).to(dtype)
    try:
        encoder.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not the weights of a Whisper encoder with this configuration: {reason}") from error
    return encoder


def _weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint's main weights; hubs keep other precisions beside them."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{path}: no model.safetensors and no model.safetensors.index.json")
    return [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
