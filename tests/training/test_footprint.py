from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import TinyCheckpoints
from torch.profiler import ProfilerActivity, profile

from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.shapes import on_meta
from balsa_ray.training.footprint import Shape, encoder_flops, measure
from balsa_ray.training.packing import collate
from balsa_ray.training.step import MicroBatch, prepare, sample_losses

SHAPE = Shape(samples=8, tokens=256, reply_tokens=100, windows=1)


def allocated(run: Callable[[], object]) -> int:
    """Most bytes at once that torch's allocator gave out, beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    assert changes
    return int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_that_of_a_real_step(tiny_checkpoints: TinyCheckpoints, checkpointing: bool) -> None:
    names = tiny_checkpoints.text, tiny_checkpoints.audio
    model = BalsaForConditionalGeneration.assemble(*names, num_query_tokens=4)
    prepare(model, recompute=checkpointing)
    rng = np.random.default_rng(0)
    rows = [np.append(np.full(4, model.config.audio_token_id), rng.integers(10, 300, 252)) for _ in range(8)]
    arrays = collate(np.arange(8), rows.__getitem__, np.full(8, 156))
    batch = MicroBatch.of(arrays, [torch.zeros(1, 80, 100)] * 8)

    def step() -> None:
        sample_losses(model, batch).sum().backward()

    step()  # gradients are there from now on
    expected = measure(on_meta(*names, torch.float32, num_query_tokens=4), SHAPE, checkpointing).peak_bytes
    assert expected == pytest.approx(allocated(step), rel=0.15)  # a tenth are copies that packing makes


def test_operations_of_a_frozen_llm_are_a_forward_and_a_backward_for_activations() -> None:
    model = on_meta("meta-llama/Llama-3.1-8B-Instruct", "openai/whisper-small", torch.bfloat16)
    tables = 128_256 * 4096
    blocks = sum(weight.numel() for weight in model.language_model.parameters()) - 2 * tables
    samples, tokens, reply = 2, 512, 200
    with_llm = 4 * samples * (blocks * tokens + tables * reply)  # 2 forward, 2 backward
    attention = (4 + 10) * samples * 32 * 4096 * tokens**2  # the fused backward makes the scores a second time
    encoder = samples * encoder_flops(model)
    # Keys and values of cross-attention see 1,500 positions a tap, all else 64: 6 operations a weight and position.
    width, taps = 768, 4
    seen = 2 * width**2 * 1500 + 64 * (6 + 8) * width**2
    adapter = samples * (6 * taps * 2 * seen + 6 * 64 * width * 4096)
    found = measure(model, Shape(samples, tokens, reply, 1))
    assert found.flops == pytest.approx(with_llm + attention + encoder + adapter, rel=0.01)


def test_operations_of_whisper_small() -> None:
    model = on_meta("meta-llama/Llama-3.1-8B-Instruct", "openai/whisper-small", torch.bfloat16)
    linear = 12 * 12 * 768**2 * 1500
    convolutions = 3 * 80 * 768 * 3000 + 3 * 768**2 * 1500
    assert encoder_flops(model) == pytest.approx(2 * (linear + convolutions) + 4 * 12 * 768 * 1500**2, rel=0.001)


def test_checkpointing_trades_memory_for_operations() -> None:
    model = on_meta("Qwen/Qwen2.5-7B-Instruct", "openai/whisper-small", torch.bfloat16)
    plain, checkpointed = measure(model, SHAPE), measure(model, SHAPE, checkpointing=True)
    assert checkpointed.peak_bytes < plain.peak_bytes / 2
    assert 1.2 < checkpointed.flops / plain.flops < 1.5
    assert measure(model, SHAPE) == plain


def test_a_sample_too_short_for_its_clips_is_refused() -> None:
    model = on_meta("Qwen/Qwen2.5-7B-Instruct", "openai/whisper-small", torch.bfloat16)
    with pytest.raises(ValueError, match="150 tokens are no room for 128 of audio and a reply of 30"):
        measure(model, Shape(1, 150, 30, 2))
