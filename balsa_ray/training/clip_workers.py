"""Recordings are read, decoded and turned into log-mels by Ray actors on the cluster's CPUs, ahead of the trainers.

Actors and not Ray Data: the plan of a run is a function of step and rows, known without any worker, and each trainer
asks for the clips of its coming micro-batches by name. A Ray Data iterator hands every trainer the next block that is
ready, in an order that changes with the number of trainers and can't begin in the middle of an epoch.

A clip always goes to the same actor, which keeps the last ones that it prepared: trainers that need one clip at about
the same time do not have it decoded twice.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from balsa_ray.identity import stable_hash

if TYPE_CHECKING:
    import torch

KEPT_BYTES = 64 << 20
"""Of prepared clips in one actor: what several trainers ask for within the same few steps."""
MOST_WORKERS = 64


class ClipWorker:
    """Prepares clips one after the other. An actor of Ray; in a test, an object."""

    def __init__(self, prepare: "Callable[[str], torch.Tensor]", threads: int = 1) -> None:
        """Args: what turns a recording into a tensor, and its threads."""
        import torch

        torch.set_num_threads(threads)
        self._prepare, self._bytes = prepare, 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def prepare(self, audio: str) -> Any:
        """Returns a clip as an array: Ray hands it to a trainer on the same machine without a copy.

        Raises:
            UserError: The recording can't be used.
        """
        clip = self._kept.get(audio)
        if clip is None:
            clip = self._kept[audio] = self._prepare(audio)
            self._bytes += clip.nbytes
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return clip.numpy()


def start_clip_workers(
    prepare: "Callable[[str], torch.Tensor]", trainers_cpus: int, number: int | None = None
) -> list[Any]:
    """Starts the actors, by turns on each machine of the cluster that has CPUs for work.

    One that dies is started again, and asked again; all end with the process that has started them. They book no CPU in
    Ray: Ray Train counts all of a cluster's CPUs as its own when it looks for room for workers, and would wait for ever
    for one that is taken.

    Args:
        prepare: What turns a recording into a tensor.
        trainers_cpus: What the trainers have booked.
        number: How many to start; None: one for every four CPUs that the trainers leave.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    worker = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ClipWorker)
    return [
        worker.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(prepare)
        for node in places(ray.nodes(), trainers_cpus, number)
    ]


def places(nodes: Sequence[Mapping[str, Any]], trainers_cpus: int, number: int | None = None) -> list[str]:
    """Returns the id of the machine for each actor; see `start_clip_workers`.

    Args:
        nodes: As `ray.nodes` tells them.
        trainers_cpus: What the trainers have booked.
        number: How many actors.
    """
    cpus = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]}
    number = number or min(MOST_WORKERS, max(1, int(sum(cpus.values()) - trainers_cpus) // 4))
    return list(islice(cycle(sorted(node for node in cpus if cpus[node])), number))


def ask(workers: Sequence[Any]) -> "Callable[[str], torch.Tensor]":
    """Returns what prepares a clip by asking its worker; blocks, so it is called in a thread.

    Args:
        workers: As `start_clip_workers` returns them.
    """
    import ray
    import torch
    from ray.exceptions import RayTaskError

    def prepare(audio: str) -> "torch.Tensor":
        worker = workers[int(stable_hash(audio), 16) % len(workers)]
        try:
            array = ray.get(worker.prepare.remote(audio))
        except RayTaskError as error:
            raise error.cause from None
        # A copy: arrays in Ray's object store are read-only, and memory there is freed with the last of them.
        return torch.from_numpy(array.copy())

    return prepare
