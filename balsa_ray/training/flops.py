"""How many floating-point operations training takes: by this micro-batches are balanced and a utilisation is told.

A multiplication with an addition counts as two. A frozen weight of the LLM takes 2 operations a token forward and 2
backward, for the gradient of its input alone; a trained weight takes 6; the frozen encoder runs forward, and with LoRA
backward for its activations. Attention
counts beside the weights, in the LLM for each position and those before it. What doesn't count: padding, what is
computed a second time (`gradient_checkpointing`), embeddings, norms and activation functions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from balsa_ray.model.modeling import BalsaForConditionalGeneration
    from balsa_ray.training.config import TrainConfig

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Of GPUs by what their names hold: bfloat16, dense, by the vendor's data sheets."""


def peak_flops(config: "TrainConfig", device: "torch.device") -> float | None:
    """Returns the operations a second that a device can make: as configured, or by its name; None if unknown."""
    import torch

    known = config.peak_tflops
    if known is None and device.type == "cuda" and config.precision == "bf16":
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
    return None if known is None else known * 1e12


@dataclass(frozen=True)
class Flops:
    """Operations of a training step by what causes them.

    Attributes:
        token: A token in the LLM's blocks.
        pair: A token that attends to another, or to itself, in all of the LLM's blocks.
        reply: A reply token in the LLM's head.
        encoder: A clip in the frozen encoder.
        connector: A clip in the connector.
    """

    token: float
    pair: float
    reply: float
    encoder: float
    connector: float

    @classmethod
    def of(cls, model: "BalsaForConditionalGeneration") -> "Flops":
        """Counts them off a model, which may lie on the meta device."""
        config = model.config
        text, audio = config.text_config, config.audio_config
        blocks = model.language_model.base_model
        table = blocks.get_input_embeddings().weight
        weights = [weight for weight in blocks.parameters() if weight.dim() > 1 and weight is not table]
        heads = text.num_attention_heads
        attended = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)

        width, positions, depth = audio.d_model, audio.max_source_positions, max(config.taps)
        convolutions = 3 * width * (2 * audio.num_mel_bins + width) * positions
        encoder_blocks = depth * positions * (4 * width**2 + 2 * width * audio.encoder_ffn_dim + 2 * width * positions)

        encoder_weights = list(model.audio_tower.encoder.named_parameters())
        trained = [name for name, weight in encoder_weights if weight.requires_grad]
        # Forward alone; with updates (LoRA) also backward for activations; trained itself, all of it.
        per_weight = 2.0 if not trained else 4.0 if all("lora_" in name for name in trained) else 6.0

        queries, feed_forward = config.num_query_tokens, 2 * width * config.qformer_intermediate_size
        of_queries = queries * (6 * width**2 + feed_forward + 2 * width * (queries + positions))
        # Keys and values are made of every position, whose states want no gradient.
        keys_and_values = positions * 2 * width**2
        qformer = len(config.taps) * config.qformer_layers * (6.0 * of_queries + 4.0 * keys_and_values)
        return cls(
            token=float(sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in weights)),
            pair=12.0 * text.num_hidden_layers * attended,
            reply=4.0 * text.vocab_size * text.hidden_size,
            encoder=per_weight * (convolutions + encoder_blocks),
            connector=qformer + 6.0 * queries * width * text.hidden_size,
        )

    def of_samples(
        self, tokens: np.ndarray, reply_tokens: np.ndarray, clips: np.ndarray, encoded: bool = False
    ) -> np.ndarray:
        """Returns the operations of each sample, `[n]`.

        Args:
            tokens: Length of each sample, the embeddings of its clips included.
            reply_tokens: Of them those of the reply.
            clips: Number of clips, or of their windows.
            encoded: Whether the encoder's outputs are kept from before.
        """
        of_clip = self.connector + (0.0 if encoded else self.encoder)
        pairs = tokens.astype(np.float64) * (tokens + 1) / 2
        return self.token * tokens + self.pair * pairs + self.reply * reply_tokens + of_clip * clips
