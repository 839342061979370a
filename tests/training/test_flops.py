import numpy as np
import pytest
import torch
from tiny_models import TinyCheckpoints
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.training.flops import Flops
from balsa_ray.training.packing import collate
from balsa_ray.training.step import MicroBatch, prepare, sample_losses

AUDIO = 320


@pytest.mark.parametrize("clips", [1, 2])
def test_operations_are_those_that_torch_counts(tiny_checkpoints: TinyCheckpoints, clips: int) -> None:
    model = BalsaForConditionalGeneration.assemble(tiny_checkpoints.text, tiny_checkpoints.audio, num_query_tokens=8)
    prepare(model)
    length, replies = 60, 12
    sequence = np.array([1, *[AUDIO] * (8 * clips), *range(3, 3 + length - 1 - 8 * clips)])
    arrays = collate(np.array([0]), lambda _: sequence, np.array([length - replies]))
    batch = MicroBatch.of(arrays, [torch.randn(1, 80, 100)] * clips)
    # The other kernels for CPUs are not counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sample_losses(model, batch).sum().backward()
    flops = Flops.of(model)
    counted = flops.of_samples(*map(np.array, ([length], [replies], [clips])))[0]
    # torch counts the upper half of causal attention too, which need not be computed.
    halves = flops.pair * length * (length - 1) / 2
    assert counted + halves == pytest.approx(counter.get_total_flops(), rel=0.03)
    encoded = flops.of_samples(*map(np.array, ([length], [replies], [clips])), encoded=True)[0]
    assert counted - encoded == clips * flops.encoder
