"""What lies in a worker's memory under each ZeRO stage, as DeepSpeed 0.19 lays it out (ZeRO: arXiv 1910.02054).

Everything but the activations, which no stage shards. Sizes are those of AdamW.
"""

from dataclasses import dataclass

MOMENTS = 8  # bytes a trained parameter: two float32
FLOAT32 = 4
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's own default for what a worker gathers at once under stage 3


@dataclass(frozen=True)
class States:
    """Bytes of one worker.

    Attributes:
        weights: Of the whole model, or of its part and what is gathered at once.
        gradients: Of what is trained, and the bucket in which they are reduced.
        optimizer: Moments, and the copy of the weights where there is one.
        offloaded: In main memory instead: gradients, moments, and two copies of the weights.
    """

    weights: int
    gradients: int
    optimizer: int
    offloaded: int = 0

    @property
    def on_device(self) -> int:
        """All that lies on the accelerator."""
        return self.weights + self.gradients + self.optimizer


def states(
    stage: int, trained: int, frozen: int, itemsize: int, workers: int, bucket: int, offload: bool = False
) -> States:
    """Returns what one of the workers holds. What is trained is in float32, whatever the rest is.

    Args:
        stage: 0 nothing is sharded, 1 the optimizer's state, 2 gradients too, 3 weights too, the frozen ones included.
        trained: Parameters that are trained.
        frozen: Parameters that are not; they have neither gradient nor optimizer state.
        itemsize: Bytes of a frozen weight: 2 in bfloat16, 4 in float32.
        workers: Between which the states are sharded.
        bucket: Gradients that are reduced at once, `reduce_bucket_size`.
        offload: Whether the optimizer runs on the CPU. Not with stage 0.
    """
    share = trained if stage == 0 else -(-trained // workers)
    weights = trained * FLOAT32 + frozen * itemsize
    if stage == 3:
        part = -(-(trained + frozen) // workers)
        weights = -(-weights // workers) + min(LIVE_PARAMETERS, trained + frozen - part) * itemsize
    # Every stage but 0 has a second copy of the weights, cut into the workers' parts.
    state = share * (MOMENTS + (FLOAT32 if stage else 0))
    reduced = bucket * FLOAT32 if stage else 0
    if offload:
        return States(weights, reduced, 0, state + share * 2 * FLOAT32)
    return States(weights, reduced + (share if stage >= 2 else trained) * FLOAT32, state)


def checkpoint_bytes(trained: int) -> int:
    """Returns the size of a checkpoint (`checkpoint.py`): float32 weights and moments of what is trained, once."""
    return trained * (FLOAT32 + MOMENTS)
