import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TinyCheckpoints, tiny_llm
from torch import Tensor
from transformers import (
    FalconConfig,
    Gemma2Config,
    Lfm2Config,
    MambaConfig,
    MixtralConfig,
    NemotronConfig,
    Qwen3Config,
    Qwen3NextConfig,
    StableLmConfig,
)

from balsa_ray.model.configuration import IGNORED
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.training.packing import collate, cut
from balsa_ray.training.step import (
    EncodedAudio,
    MicroBatch,
    adamw,
    cpu_kernels,
    encode_clip,
    learning_rate,
    optimise,
    prepare,
    sample_losses,
)

AUDIO = 320  # the placeholder's id, right behind the tiny vocabulary
ROWS = 8
RNG = np.random.default_rng(0)
# Replies of 1 to 8 tokens: a mean of means over workers would not be the mean over tokens.
SEQUENCES = [np.array([1, AUDIO, AUDIO, 7, *RNG.integers(10, 300, 1 + row)]) for row in range(ROWS)]
LENGTHS = np.array([len(sequence) for sequence in SEQUENCES])
PROMPTS = np.full(ROWS, 4)
REPLY_TOKENS = int((LENGTHS - 4).sum())
ALL = np.arange(ROWS)
LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
# Packed the first two, padded all others: attention that isn't told of samples, of its own, convolutions, recurrences.
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "gemma2": (Gemma2Config, {"head_dim": 32, "sliding_window": 6}),
    "stablelm": (StableLmConfig, {}),
    "nemotron": (NemotronConfig, {}),
    "falcon": (FalconConfig, {"alibi": True}),
    "lfm2": (Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
    "mamba": (MambaConfig, {"state_size": 8}),
    "qwen3_next": (
        Qwen3NextConfig,
        {
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
        }
        | LINEAR,
    ),
}
MELS = torch.randn(ROWS, 80, 100, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_checkpoints: TinyCheckpoints) -> BalsaForConditionalGeneration:
    return assembled(tiny_checkpoints)


def assembled(checkpoints: TinyCheckpoints, recompute: bool = False) -> BalsaForConditionalGeneration:
    model = BalsaForConditionalGeneration.assemble(checkpoints.text, checkpoints.audio, num_query_tokens=2)
    prepare(model, recompute)
    return model


def micro_batch(samples: np.ndarray, audio: Tensor = MELS) -> MicroBatch:
    return MicroBatch.of(collate(samples, SEQUENCES.__getitem__, PROMPTS), [audio[row][None] for row in samples])


def parts(world: int, budget: int) -> list[list[np.ndarray]]:
    """The eight samples cut for a number of workers."""
    return cut(np.arange(ROWS), LENGTHS, LENGTHS, world, budget)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_warm_up_then_cosine() -> None:
    rates = [learning_rate(step, 10, 1.0, 4) for step in range(1, 11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[7] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[-1] > 0
    assert learning_rate(1, 10, 1.0, 0) == 1.0


def test_losses_of_samples_are_those_of_padded_rows(model: BalsaForConditionalGeneration) -> None:
    rows = [torch.from_numpy(sequence) for sequence in SEQUENCES]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = (padded != 0).long()
    labels = padded.masked_fill(mask.cumsum(dim=1) <= 4, IGNORED)
    own = model(padded, mask, MELS, labels=labels, num_items_in_batch=REPLY_TOKENS)
    losses = sample_losses(model, micro_batch(ALL))
    assert losses.shape == (ROWS,)
    assert losses.sum().item() / REPLY_TOKENS == pytest.approx(own.loss.item(), rel=1e-5)
    per_row = [one.sum() for one in own.reply_losses.split((labels != IGNORED).sum(dim=1).tolist())]
    torch.testing.assert_close(losses, torch.stack(per_row), rtol=1e-5, atol=1e-5)
    turned = sample_losses(model, micro_batch(ALL[::-1].copy()))
    torch.testing.assert_close(turned.flip(0), losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "recompute"), [*((family, False) for family in FAMILIES), ("stablelm", True)])
def test_losses_and_gradients_of_packed_samples_are_those_of_each_alone(
    family: str, recompute: bool, tiny_checkpoints: TinyCheckpoints, tmp_path: Path
) -> None:
    config, options = FAMILIES[family]
    text = str(tiny_llm(tmp_path, config, **options))
    model = BalsaForConditionalGeneration.assemble(text, tiny_checkpoints.audio, num_query_tokens=2)
    alone = []
    for row in range(ROWS):
        ids = torch.from_numpy(SEQUENCES[row])[None]
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < 4, IGNORED)
        alone.append(model(ids, input_features=MELS[row][None], labels=labels).reply_losses.sum())
    torch.stack(alone).sum().backward()
    expected = [parameter.grad for parameter in trained(model)]
    model.zero_grad()

    prepare(model, recompute)
    losses = sample_losses(model, micro_batch(ALL))
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-4, atol=1e-4)
    losses.sum().backward()
    largest = max(gradient.abs().max().item() for gradient in expected)
    for parameter, gradient in zip(trained(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5 * largest)


def test_clips_encoded_beforehand_give_the_same_loss(model: BalsaForConditionalGeneration) -> None:
    direct = sample_losses(model, micro_batch(ALL))
    states = torch.cat([encode_clip(model.audio_tower, mel[None]) for mel in MELS])
    assert not states.requires_grad
    keys = {key for key in model.state_dict() if "connector" in key}
    model.audio_tower = EncodedAudio(model.audio_tower.connector)
    assert set(model.state_dict()) >= keys
    torch.testing.assert_close(sample_losses(model, micro_batch(ALL, states)), direct, rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_for_frozen_weights(model: BalsaForConditionalGeneration) -> None:
    optimise(model, adamw(trained(model), (0.9, 0.98), 0.01), [micro_batch(ALL)], 1e-3, 1.0)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".connector." not in name)


STEPS = 32
RATES = [learning_rate(step, STEPS, 1e-3, 4) for step in range(1, STEPS + 1)]


@dataclass(frozen=True)
class Way:
    """How the same 32 steps are computed."""

    world: int = 1
    budget: int = 1_000
    recompute: bool = False
    encoded: bool = False


def loss_path(checkpoints: TinyCheckpoints, way: Way) -> list[float]:
    model = assembled(checkpoints, way.recompute)
    frozen = [parameter.clone() for parameter in model.language_model.parameters()]
    audio = MELS
    if way.encoded:
        audio = torch.cat([encode_clip(model.audio_tower, mel[None]) for mel in MELS])
        model.audio_tower = EncodedAudio(model.audio_tower.connector)
    learned = trained(model)
    optimiser = adamw(learned, (0.9, 0.98), 0.01)
    losses = []
    for rate in RATES:
        losses.append(0.0)
        gradients = []
        for mine in parts(way.world, way.budget):
            optimiser.zero_grad()
            for packed in mine:
                part = sample_losses(model, micro_batch(packed, audio)).sum() / REPLY_TOKENS
                losses[-1] += part.item()
                # As in the distributed loop: gradients are averaged over the workers, and their sum is wanted.
                (part * way.world).backward()
            gradients.append([parameter.grad for parameter in learned])
        for parameter, of_workers in zip(learned, zip(*gradients, strict=True), strict=True):
            parameter.grad = torch.stack(of_workers).mean(dim=0)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    assert all(map(torch.equal, model.language_model.parameters(), frozen))
    return losses


@pytest.fixture(scope="module")
def undivided_path(tiny_checkpoints: TinyCheckpoints) -> list[float]:
    """Losses of 32 steps by `optimise`, every step in one micro-batch."""
    model = assembled(tiny_checkpoints)
    optimiser = adamw(trained(model), (0.9, 0.98), 0.01)
    [[whole]] = parts(1, 1_000)
    losses = [optimise(model, optimiser, [micro_batch(whole)], rate, 1.0).loss for rate in RATES]
    assert losses[-1] < 0.85 * losses[0]
    return losses


@pytest.mark.parametrize(
    ("way", "micro_batches"),
    [
        (Way(budget=24), 4),
        (Way(world=2), 1),
        (Way(world=3), 1),
        (Way(world=4, budget=16), 2),
        (Way(recompute=True), 1),
        (Way(encoded=True), 1),
        (Way(world=2, budget=24, recompute=True, encoded=True), 2),
    ],
    ids=str,
)
def test_the_loss_path_does_not_depend_on_how_a_step_is_computed(
    tiny_checkpoints: TinyCheckpoints, undivided_path: list[float], way: Way, micro_batches: int
) -> None:
    assert {len(mine) for mine in parts(way.world, way.budget)} == {micro_batches}
    # float32: sums in another order; Adam turns a relative error of a small gradient into one of a step.
    assert loss_path(tiny_checkpoints, way) == pytest.approx(undivided_path, rel=1e-4)


def test_recomputing_keeps_less(model: BalsaForConditionalGeneration) -> None:
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def kept() -> int:
        """Bytes kept for the backward pass, weights apart."""
        sizes = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sample_losses(model, micro_batch(ALL))
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    before = kept()
    prepare(model, recompute=True)
    assert kept() < 0.8 * before


def test_cpu_kernels_change_no_result(model: BalsaForConditionalGeneration) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    plain = sample_losses(model, micro_batch(ALL))
    with cpu_kernels():
        fast = sample_losses(model, micro_batch(ALL))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_core_needs_neither_ray_nor_deepspeed_nor_vllm() -> None:
    program = (
        "import sys; from balsa_ray.training import batches, flops, packing, step;"
        "print(*{'ray', 'deepspeed', 'vllm'} & {*sys.modules})"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == ""
