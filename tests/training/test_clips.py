import threading
from collections import Counter
from pathlib import Path

import torch

from balsa_ray.training.clips import ClipCache, on_disk, prefetch


def counting_cache(capacity: int) -> tuple[ClipCache, Counter[str]]:
    prepared: Counter[str] = Counter()

    def prepare(audio: str) -> torch.Tensor:
        prepared[audio] += 1
        return torch.tensor(float(audio))

    return ClipCache(prepare, capacity, threads=2), prepared


def test_kept_clips_are_prepared_once_and_the_cache_is_bounded() -> None:
    cache, prepared = counting_cache(capacity=3 * 4)  # three tensors of one float32
    for _ in range(4):
        for audio in "01234":
            assert cache.request(audio).result() == float(audio)
    cache.close()
    assert prepared == {"0": 1, "1": 1, "2": 1, "3": 4, "4": 4}


def test_what_is_on_disk_is_prepared_once_by_all_and_again_when_the_recording_changes(tmp_path: Path) -> None:
    prepared: Counter[str] = Counter()

    def prepare(audio: str) -> torch.Tensor:
        prepared[audio] += 1
        return torch.arange(6).view(2, 3).T  # not contiguous

    recording = tmp_path / "a.wav"
    recording.write_text("sound")
    names = [str(recording), f"{recording}#t=0.0,1.0"]
    for _ in range(2):
        remembered = on_disk(prepare, tmp_path / "cache")  # as another worker, or a later run
        assert all(torch.equal(remembered(name), torch.arange(6).view(2, 3).T) for name in names)
    assert set(prepared.values()) == {1}
    recording.write_text("another sound")
    on_disk(prepare, tmp_path / "cache")(names[0])
    assert prepared[names[0]] == 2
    # Cut short as a machine went down: made anew.
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:9])
    assert torch.equal(on_disk(prepare, tmp_path / "cache")(names[0]), torch.arange(6).view(2, 3).T)
    assert prepared[names[0]] == 3
    assert not list(tmp_path.rglob(".*"))


def test_a_clip_in_two_batches_under_way_is_prepared_once_even_without_room() -> None:
    cache, prepared = counting_cache(capacity=0)
    out = list(prefetch(["01", "12"], list, cache, ahead=2))
    cache.close()
    assert [(item, [float(clip) for clip in clips]) for item, clips in out] == [("01", [0, 1]), ("12", [1, 2])]
    assert prepared["1"] == 1


def test_prefetch_keeps_the_order_and_prepares_ahead() -> None:
    asked: list[str] = []
    all_asked = threading.Event()

    def prepare(audio: str) -> torch.Tensor:
        asked.append(audio)
        if len(asked) == 3:
            all_asked.set()
        return torch.tensor(float(audio))

    cache = ClipCache(prepare, capacity=9, threads=1)
    stream = prefetch("012345", list, cache, ahead=2)
    assert next(stream)[0] == "0"
    assert all_asked.wait(5)
    assert [item for item, _ in stream] == list("12345")
    cache.close()
