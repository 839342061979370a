"""Cross entropy of replies: only positions before a label pass through the LLM's head, a few hundred at once.

With a vocabulary of 128k the logits of one position, their softmax and their gradient take 1.5 MB in float32. Not half
of the positions have a label, and even of those the logits need not exist together: the head is frozen, so the gradient
of a position's loss is known as soon as the loss is, and is all that is kept for the backward pass.

Shapes: B rows, L tokens, K reply tokens, H LLM width, V vocabulary.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from balsa_ray.model.configuration import IGNORED

LOGITS = 1 << 25
"""Logits that exist at once: 256 positions of a 128k vocabulary, 128 MB in float32."""


def reply_losses(language_model: PreTrainedModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross entropy of every label, float32 `[K]`, row by row.

    Args:
        language_model: A causal LM whose head is frozen.
        hidden: What its blocks and last norm give, `[B, L, H]`.
        labels: `[B, L]`, `IGNORED` where nothing is to be learned. Position t is predicted from t - 1.
    """
    targets = labels[:, 1:]
    learned = targets != IGNORED
    chunk = max(1, LOGITS // language_model.config.get_text_config().vocab_size)
    losses: Tensor = _Losses.apply(hidden[:, :-1][learned], targets[learned], head_of(language_model), chunk)
    return losses


def head_of(language_model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Returns what turns hidden states `[K, H]` into logits `[K, V]`.

    It is the LLM itself without its blocks, so that whatever a family does behind its head (Gemma caps logits, Cohere
    and Granite scale them) is done by its own code.
    """
    bare = copy.copy(language_model)
    bare._modules = language_model._modules | {language_model.base_model_prefix: _NoBlocks()}

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = bare(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0]

    return head


class _NothingBeside(BaseModelOutput):
    """Hidden states; None where a family asks what else its blocks have returned: caches, routers' logits."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _NoBlocks(nn.Module):
    """Stands where an LLM's blocks were and hands on what it gets."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return _NothingBeside(last_hidden_state=inputs_embeds)


class _Losses(torch.autograd.Function):
    """Losses `[K]`, whose gradients are made along with them, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        """Returns the losses and keeps the gradient of each by its own hidden state, `[K, H]`."""
        learns = ctx.needs_input_grad[0]
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            with torch.set_grad_enabled(learns):
                leaf = part.detach().requires_grad_(learns)
                # float32: sums over a vocabulary in bfloat16 would lose their smaller terms.
                found = nn.functional.cross_entropy(head(leaf).float(), wanted, reduction="none")
                gradients += torch.autograd.grad(found.sum(), leaf) if learns else ()
            losses.append(found.detach())
        if learns:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """Scales each position's gradient by that of its loss."""
        (gradients,) = ctx.saved_tensors
        return gradients * upstream[:, None].to(gradients.dtype), None, None, None
