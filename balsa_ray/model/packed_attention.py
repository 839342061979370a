"""Samples that stand one behind the other in a single row, and an LLM that keeps them apart.

All of most LLMs but their attention looks at one position at a time and doesn't care where samples begin. For the
attention alone the samples are spread out, one a row, padded on the right: a causal kernel without a mask then lets no
token see what comes behind it, padding included. A mask over the whole row would take the time and memory of attention
between all tokens, most of it between samples that never look at each other.

Some families don't tell their attention where samples begin (StableLM, Falcon), have one of their own (Gemma 2), or mix
neighbouring positions elsewhere too (convolutions, recurrences). Their blocks get a row a sample, padded on the right
as well. Which families these are is found out by trial.

Shapes: T tokens of all samples, S samples, L tokens of the longest, A heads, E width of a head, H LLM width.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_within_samples"
TRIAL_LENGTHS = np.array([7, 9, 8])

logger = logging.getLogger(__name__)


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

    def spread(self, row: Tensor) -> Tensor:
        """Gives every sample a row of its own: `[T, …]` → `[S, L, …]`, zeros on the right."""
        rows = row.new_zeros(self.samples * self.longest, *row.shape[1:]).index_copy(0, self.places, row)
        return rows.view(self.samples, self.longest, *row.shape[1:])

    def gather(self, rows: Tensor) -> Tensor:
        """Puts samples one behind the other again: `[S, L, …]` → `[T, …]`."""
        return rows.flatten(0, 1).index_select(0, self.places)


def hidden_states(language_model: PreTrainedModel, embeds: Tensor, layout: Layout) -> Tensor:
    """Returns what an LLM's blocks and last norm make of samples in a single row, `[1, T, H]` → `[1, T, H]`.

    No sample sees another, whether `attend_within_samples` has succeeded or not.
    """
    blocks = language_model.base_model
    if language_model.config._attn_implementation != NAME:
        # Neither mask nor positions: no token sees the padding behind it, and every row begins at position 0.
        rows = blocks(inputs_embeds=layout.spread(embeds[0]), use_cache=False).last_hidden_state
        return layout.gather(rows)[None]
    output: Tensor = blocks(
        inputs_embeds=embeds,
        # transformers takes a mask of four dimensions as it is. Any other it would make into one of the row squared.
        attention_mask=embeds.new_ones(1, 1, 1, 1, dtype=torch.bool),
        position_ids=(layout.places % layout.longest)[None],
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    return output


def attend_within_samples(language_model: PreTrainedModel) -> bool:
    """Makes an LLM take a `layout` with its inputs, if it then keeps the samples of a row apart.

    Without a layout it works as before. An LLM that can't do it is left as it was, and a warning says why.

    Returns:
        Whether it can.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    fault = _fault_in_trial(language_model)
    if fault:
        if language_model.config._attn_implementation == NAME:
            language_model.set_attn_implementation("sdpa")
        logger.warning(
            "%s %s: its blocks get a row a sample, padded to the longest of a micro-batch",
            type(language_model).__name__,
            fault,
        )
    return not fault


@torch.no_grad()
def _fault_in_trial(language_model: PreTrainedModel) -> str:
    """Lets an LLM read two rows of short samples that differ in the first one. Returns what went wrong, if anything."""
    attention = language_model.config._attn_implementation
    if attention not in ("sdpa", NAME):
        return f"has attention {attention!r}"
    first, device = int(TRIAL_LENGTHS[0]), language_model.device
    layout, alone = Layout.of(TRIAL_LENGTHS, device), Layout.of(TRIAL_LENGTHS[:1], device)
    vocabulary = language_model.config.get_text_config().vocab_size
    size = (2, int(TRIAL_LENGTHS.sum()))
    ids = torch.randint(vocabulary, size, generator=torch.Generator().manual_seed(0))
    ids[1, first:] = ids[0, first:]
    embeds = language_model.get_input_embeddings()(ids.to(device))

    def read() -> list[Tensor]:
        return [hidden_states(language_model, row[None], layout)[0] for row in embeds]

    language_model.set_attn_implementation("sdpa")
    padded = read()
    by_itself = hidden_states(language_model, embeds[:1, :first], alone)[0]
    language_model.set_attn_implementation(NAME)
    if language_model.config._attn_implementation != NAME:
        return "can't change its attention"
    try:
        packed = read()
    except Exception as error:  # whatever a family makes of an argument that it doesn't know
        return f"takes no layout ({type(error).__name__}: {error})"
    # Shapes are equal, so rounding is, too, but for experts: these get other tokens with another first sample.
    moved, moved_in_padded = (_distance(states[0][first:], states[1][first:]) for states in (packed, padded))
    if not moved <= 10 * max(moved_in_padded, 1e-6):
        return "lets samples of one row see each other"
    # Here rounding differs, by as much as for a sample that is read with others and by itself.
    rounding = max(_distance(by_itself, padded[0][:first]), torch.finfo(embeds.dtype).eps)
    if not _distance(packed[0], padded[0]) <= 10 * rounding:
        return "reads samples of one row otherwise than by themselves"
    return ""


def _distance(states: Tensor, expected: Tensor) -> float:
    return float((states.float() - expected.float()).norm() / expected.float().norm())


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
        return layout.spread(states[0].transpose(0, 1)).transpose(1, 2)

    seen = None
    if sliding_window is not None and layout.longest > sliding_window:
        seen = query.new_ones(layout.longest, layout.longest, dtype=torch.bool).tril().triu(1 - sliding_window)
        seen = seen[None, None]
    heads, _ = sdpa_attention_forward(module, spread(query), spread(key), spread(value), seen, **kwargs)
    return layout.gather(heads)[None], None
