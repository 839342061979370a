from pathlib import Path

from balsa_ray.training.report import POINTS, curve, write_report


def test_a_curve_has_few_points_and_keeps_the_mean() -> None:
    xs, ys = curve([(step, step % 2) for step in range(1, 1001)])
    assert len(xs) == POINTS
    assert sum(ys) / len(ys) == 0.5
    assert curve([(1, 3.0)]) == ([1.0], [3.0])


def test_the_page_has_a_curve_for_everything_that_is_measured(tmp_path: Path) -> None:
    lines = [
        {
            "step": step, "stage": "single" if step < 5 else "multi", "loss": 1 / step, "lr": 1e-3, "grad_norm": 1.0,
            "tokens_per_second": 10.0, "samples": 8, "audio_seconds": 1.6,
            "loss_by_kind": {"present": 1.0} if step < 5 else {"difference": 2.0},
        }
        for step in range(1, 10)
    ]  # fmt: skip
    write_report(tmp_path / "report.html", lines, {"steps": 9, "samples": {"present": 3}})
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 5
    assert "9 steps, 72 samples" in page
    assert "present 3" in page
