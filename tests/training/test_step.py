from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import TinyCheckpoints
from torch import Tensor

from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.training.batches import collate, divide
from balsa_ray.training.step import (
    EncodedAudio,
    MicroBatch,
    adamw,
    cpu_kernels,
    encode_clip,
    learning_rate,
    optimise,
    sample_losses,
)

AUDIO = 320  # the placeholder's id, right behind the tiny vocabulary
ROWS = 8
RNG = np.random.default_rng(0)
# Replies of 1 to 8 tokens: a mean of means over workers would not be the mean over tokens.
SEQUENCES = [np.array([1, AUDIO, AUDIO, 7, *RNG.integers(10, 300, 1 + row)]) for row in range(ROWS)]
MELS = torch.randn(ROWS, 80, 100, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_checkpoints: TinyCheckpoints) -> BalsaForConditionalGeneration:
    return BalsaForConditionalGeneration.assemble(tiny_checkpoints.text, tiny_checkpoints.audio, num_query_tokens=2)


def micro_batch(rows: Sequence[int], audio: Tensor = MELS) -> MicroBatch:
    arrays = collate([SEQUENCES[row] for row in rows], [4] * len(rows), pad_token_id=0)
    return MicroBatch.of(arrays, [audio[row : row + 1] for row in rows])


def shares(workers: int, samples: int) -> list[list[np.ndarray]]:
    """Micro-batches of at most so many samples for each worker."""
    return divide(np.full(ROWS, 10), workers, 10 * samples)


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


def test_losses_of_samples_sum_to_the_model_s_own(model: BalsaForConditionalGeneration) -> None:
    batch = micro_batch(range(ROWS))
    own = model(batch.input_ids, batch.attention_mask, batch.audio, labels=batch.labels, num_items_in_batch=36).loss
    losses = sample_losses(model, batch)
    assert losses.shape == (ROWS,)
    assert losses.sum().item() / 36 == pytest.approx(own.item(), rel=1e-5)
    alone = [sample_losses(model, micro_batch([row])).item() for row in range(ROWS)]
    assert losses.tolist() == pytest.approx(alone, rel=1e-4)


def test_clips_encoded_beforehand_give_the_same_loss(model: BalsaForConditionalGeneration) -> None:
    direct = sample_losses(model, micro_batch(range(ROWS)))
    states = torch.cat([encode_clip(model.audio_tower, mel[None]) for mel in MELS])
    assert not states.requires_grad
    keys = {key for key in model.state_dict() if "connector" in key}
    model.audio_tower = EncodedAudio(model.audio_tower.connector)
    assert set(model.state_dict()) >= keys
    torch.testing.assert_close(sample_losses(model, micro_batch(range(ROWS), states)), direct, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("workers", "size"), [(2, 4), (1, 2), (4, 1), (2, 3)])
def test_gradients_do_not_depend_on_workers_and_micro_batches(
    model: BalsaForConditionalGeneration, workers: int, size: int
) -> None:
    def gradients(workers: int, size: int) -> Tensor:
        """What the loop makes: each worker's loss times the number of workers, averaged over the workers."""
        model.zero_grad()
        for rank in range(workers):
            for rows in shares(workers, size)[rank]:
                (sample_losses(model, micro_batch(rows)).sum() * workers / 36 / workers).backward()
        return torch.cat([parameter.grad.flatten() for parameter in trained(model)])

    whole = gradients(1, ROWS)
    assert (gradients(workers, size) - whole).norm() < 1e-5 * whole.norm()


def test_steps_learn_and_follow_one_path_however_the_batch_is_cut(tiny_checkpoints: TinyCheckpoints) -> None:
    def path(size: int) -> list[float]:
        model = BalsaForConditionalGeneration.assemble(
            tiny_checkpoints.text, tiny_checkpoints.audio, num_query_tokens=2
        )
        frozen = [parameter.clone() for parameter in model.language_model.parameters()]
        optimiser = adamw(trained(model), (0.9, 0.98), 0.01)
        batches = [micro_batch(rows) for rows in shares(1, size)[0]]
        losses = [optimise(model, optimiser, batches, 3e-3, 1.0).loss for _ in range(10)]
        assert all(map(torch.equal, model.language_model.parameters(), frozen))
        return losses

    whole = path(ROWS)
    assert whole[-1] < 0.8 * whole[0]
    assert path(3) == pytest.approx(whole, rel=1e-4)


def test_cpu_kernels_change_no_result(model: BalsaForConditionalGeneration) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    plain = sample_losses(model, micro_batch(range(ROWS)))
    with cpu_kernels():
        fast = sample_losses(model, micro_batch(range(ROWS)))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
