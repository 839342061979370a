from collections import Counter
from pathlib import Path

import pytest
import torch

from balsa_ray.config import UserError
from balsa_ray.training.clip_workers import ClipWorker, ask, places, start_clip_workers


def test_a_worker_remembers_the_last_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: Counter[str] = Counter()

    def prepare(audio: str) -> torch.Tensor:
        prepared[audio] += 1
        return torch.full((2,), float(audio))

    monkeypatch.setattr("balsa_ray.training.clip_workers.KEPT_BYTES", 3 * 8)
    worker = ClipWorker(prepare)
    assert [float(worker.prepare(audio)[0]) for audio in "012011"] == [0, 1, 2, 0, 1, 1]
    assert set(prepared.values()) == {1}
    worker.prepare("3")  # the first one has to go
    worker.prepare("1")
    worker.prepare("0")
    assert prepared == {"0": 2, "1": 1, "2": 1, "3": 1}


def test_decoders_go_by_turns_to_machines_that_work() -> None:
    cpus = {"head": 0, "b": 16, "a": 8, "gone": 64}
    nodes = [
        {"NodeID": name, "Alive": name != "gone", "Resources": {"CPU": n} if n else {}} for name, n in cpus.items()
    ]
    assert places(nodes, trainers_cpus=4) == ["a", "b", "a", "b", "a"]  # one for every four of the other 20
    assert places(nodes, trainers_cpus=24) == ["a"]
    assert places(nodes, trainers_cpus=24, number=3) == ["a", "b", "a"]


def prepare(audio: str) -> torch.Tensor:
    if audio == "broken":
        raise UserError(f"{audio}: no sound", exit_code=1)
    with Path(audio).open("a") as file:
        file.write("x")
    return torch.tensor([float(len(audio))])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_each_clip_is_decoded_once_whoever_asks_and_a_mistake_comes_back_as_it_was(tmp_path: Path) -> None:
    import ray

    workers = start_clip_workers(prepare, trainers_cpus=0, number=2)
    names = [str(tmp_path / str(number)) for number in range(6)]
    for trainer in (ask(workers), ask(workers)):
        for name in names:
            clip = trainer(name)
            assert clip.tolist() == [len(name)]
            clip += 1  # a trainer's own
    assert {Path(name).read_text() for name in names} == {"x"}
    with pytest.raises(UserError, match=r"^broken: no sound$") as error:
        ask(workers)("broken")
    assert error.value.exit_code == 1
    for worker in workers:
        ray.kill(worker)
