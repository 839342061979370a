"""What a micro-batch costs: floating-point operations and memory, counted on torch's meta device.

The model's own modules run forward and backward on tensors that have a shape and no data: 8 billion parameters take
half a second on one core and no memory. So nothing here knows what a Llama block keeps for its backward pass, or that
a frozen weight needs no gradient; autograd and the modules themselves say so. Not counted are the copies that attention
within packed samples makes (a tenth at toy size), workspaces of kernels, fragmentation of the allocator, and CUDA's own
context.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface

from balsa_ray.model.modeling import BalsaForConditionalGeneration

FUSED = "fused_on_meta"


@dataclass(frozen=True)
class Shape:
    """A micro-batch.

    Attributes:
        samples: In it.
        tokens: Positions of each sample, embeddings of its clips and padding included.
        reply_tokens: Positions of each sample that pass through the LLM's head.
        windows: Windows of audio (Whisper: 30 s) of each sample.
    """

    samples: int
    tokens: int
    reply_tokens: int
    windows: int


@dataclass(frozen=True)
class Footprint:
    """Of one forward and backward pass.

    Attributes:
        flops: Floating-point operations; a multiplication with an addition counts as two.
        peak_bytes: Most memory at once, without weights and their gradients.
    """

    flops: int
    peak_bytes: int


class Ledger(TorchDispatchMode):
    """Books the operations that are made, and the memory of the tensors that they make for as long as those live."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Starts at zero.

        Args:
            known: Tensors that exist already and are not booked.
        """
        super().__init__()
        self.flops = 0
        self.peak_bytes = 0
        self._live_bytes = 0
        self._known = {_storage_key(tensor) for tensor in known}
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (operation := func._overloadpacket) in flop_registry:
            self.flops += flop_registry[operation](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._book(tensor)
        return out

    def _book(self, tensor: Tensor) -> None:
        key = _storage_key(tensor)
        if key in self._known or key in self._live:
            return
        storage = tensor.untyped_storage()
        self._live[key] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._live_bytes -= self._live.pop(key)


def _storage_key(tensor: Tensor) -> int:
    """What tensors that share memory have in common: on the meta device all addresses are 0."""
    return tensor.untyped_storage()._cdata


def measure(model: BalsaForConditionalGeneration, shape: Shape, checkpointing: bool = False) -> Footprint:
    """Counts one micro-batch, forward and backward.

    Args:
        model: On the meta device. Its attention and checkpointing are switched to what is measured.
        shape: Of the micro-batch.
        checkpointing: Whether the LLM's blocks keep only their inputs and are computed a second time in the backward
            pass.

    Raises:
        ValueError: If a sample has no room for its clips.
    """
    language_model = model.language_model
    _fuse_attention(model)
    if checkpointing:
        language_model.activation_checkpointing_enable()
        language_model.disable_input_require_grads()  # only checkpoints of the older, reentrant kind need them
    else:
        language_model.activation_checkpointing_disable()
    language_model.train(checkpointing)  # transformers checkpoints in train mode alone
    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.requires_grad:
            # There beforehand: gradients are counted apart, in whatever way they are sharded.
            parameter.grad = torch.zeros_like(parameter)
    mels, ids = _log_mels(model, shape.samples * shape.windows), _meta(shape.samples, shape.tokens, dtype=torch.long)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    with Ledger([*parameters, *gradients, *model.buffers()]) as ledger:
        _loss(model, mels, ids, shape.reply_tokens).backward()
    return Footprint(ledger.flops, ledger.peak_bytes)


@torch.no_grad()
def encoder_flops(model: BalsaForConditionalGeneration) -> int:
    """Counts the operations of the audio encoder for one window of audio."""
    _fuse_attention(model)
    with Ledger([*model.parameters(), *model.buffers()]) as ledger:
        model.audio_tower.encode(_log_mels(model, 1))
    return ledger.flops


def _loss(model: BalsaForConditionalGeneration, mels: Tensor, ids: Tensor, reply_tokens: int) -> Tensor:
    """The model's forward pass, without what asks for values: where the placeholders and the labels are."""
    samples, tokens = ids.shape
    audio = model.embed_audio(mels)
    audio = audio.view(samples, -1, audio.shape[-1])
    if audio.shape[1] + reply_tokens > tokens:
        raise ValueError(f"{tokens} tokens are no room for {audio.shape[1]} of audio and a reply of {reply_tokens}")
    embeds = torch.cat([audio, model.get_input_embeddings()(ids)[:, audio.shape[1] :]], dim=1)
    # A mask over positions is taken as it is; one over tokens would be looked into.
    mask = _meta(samples, 1, tokens, tokens, dtype=torch.bool)
    blocks = model.language_model.base_model
    hidden = blocks(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, -reply_tokens:])
    labels = _meta(samples * reply_tokens, dtype=torch.long)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels, reduction="sum")


def _meta(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _log_mels(model: BalsaForConditionalGeneration, windows: int) -> Tensor:
    audio = model.config.audio_config
    return _meta(windows, audio.num_mel_bins, 2 * audio.max_source_positions, dtype=model.dtype)


def _fuse_attention(model: nn.Module) -> None:
    """Makes every part attend by one fused kernel, as on a GPU: on the meta device torch would choose the plain one."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = FUSED


def _fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention `[B, heads, L, width]` → `[B, L, heads, width]` that keeps no scores; keys are repeated for all heads.

    With a mask transformers repeats them too, and batches that are padded have one.
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    output = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, torch.is_grad_enabled(), 0.0, False
    )[0]
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(FUSED, _fused_attention)
