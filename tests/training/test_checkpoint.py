from pathlib import Path

from balsa_ray.training.checkpoint import complete, step_of


def test_only_complete_checkpoints_count_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-10", "step-9", "step-100", "partial-110"):
        (tmp_path / name).mkdir()
    assert [step_of(folder) for folder in complete(tmp_path)] == [9, 10, 100]
    assert complete(tmp_path / "none") == []
