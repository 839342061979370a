"""Attention within samples that stand one behind the other in a single row, so that no position is padding.

All of an LLM but its attention looks at one position at a time and doesn't care where samples begin. For the attention
alone they are spread out, one a row, padded on the right: a causal kernel without a mask then lets no token see what
comes behind it, padding included. A mask over the whole row would take the time and memory of attention between all
tokens, most of it between samples that never look at each other.

Shapes: T tokens of all samples, S samples, L tokens of the longest, A heads, E width of a head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_within_samples"


@dataclass(frozen=True)
class Layout:
    """Where the samples of a row begin and end.

    Attributes:
        places: Where each token stands when every sample has a row of its own, `[T]`.
        samples: S.
        longest: L.
    """

    places: Tensor
    samples: int
    longest: int

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device | str = "cpu") -> "Layout":
        """Describes samples of these lengths, in their order."""
        longest = int(lengths.max())
        starts = np.repeat(np.arange(len(lengths)) * longest - np.cumsum(lengths) + lengths, lengths)
        return cls(torch.from_numpy(starts + np.arange(len(starts))).to(device), len(lengths), longest)


def attend_within_samples(language_model: PreTrainedModel) -> None:
    """Makes an LLM take a `layout` with its inputs; without one it works as before.

    Raises:
        ValueError: If the LLM doesn't use torch's scaled dot product attention.
    """
    if language_model.config._attn_implementation not in ("sdpa", NAME):
        raise ValueError(
            f"{type(language_model).__name__} runs with attention {language_model.config._attn_implementation!r}; "
            "samples can be packed with 'sdpa' alone"
        )
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.set_attn_implementation(NAME)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `[1, A, T, E]` → `[1, T, A, E]`."""
    if layout is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output

    def spread(states: Tensor) -> Tensor:
        flat = states[0].transpose(0, 1)
        rows = flat.new_zeros(layout.samples * layout.longest, *flat.shape[1:]).index_copy(0, layout.places, flat)
        return rows.view(layout.samples, layout.longest, *flat.shape[1:]).transpose(1, 2)

    seen = None
    if sliding_window is not None and layout.longest > sliding_window:
        seen = query.new_ones(layout.longest, layout.longest, dtype=torch.bool).tril().triu(1 - sliding_window)
        seen = seen[None, None]
    heads, _ = sdpa_attention_forward(module, spread(query), spread(key), spread(value), seen, **kwargs)
    return heads.flatten(0, 1).index_select(0, layout.places)[None], None
