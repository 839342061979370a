import io
import json
from pathlib import Path

import pytest

from balsa_ray.config import UserError
from balsa_ray.training.metrics import METRICS, LiveLine, MetricsWriter, follow, read, rewind


def line(step: int) -> dict:
    figures = {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "samples": 32, "seconds": 0.5, "tokens_per_second": 640.0}
    return {"step": step, "stage": "single"} | figures


def test_a_resumed_run_goes_on_after_its_checkpoint_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    assert [row["step"] for row in read(path)] == [1, 2, 3, 4, 5, 6, 7]
    writer = MetricsWriter(tmp_path, step=5)
    writer.write(line(6) | {"loss_by_kind": {"present": 1.0}})
    writer.close()
    assert [row["step"] for row in read(path)] == [1, 2, 3, 4, 5, 6]
    assert list((tmp_path / "tensorboard").iterdir())


def test_nothing_has_been_written_yet(tmp_path: Path) -> None:
    assert read(tmp_path / METRICS) == []


def test_follow_yields_new_lines_once_even_if_the_file_is_rewound(tmp_path: Path) -> None:
    path = tmp_path / METRICS

    def add(steps: range, **more: str) -> None:
        with path.open("a") as file:
            file.writelines(json.dumps(line(step) | more) + "\n" for step in steps)

    def go_back_and_on() -> None:
        # Nobody sees the short file between the two, and no line begins where one began before.
        rewind(path, 2)
        add(range(3, 7), more="x")

    moments = [lambda: add(range(1, 4)), lambda: add(range(4, 6)), go_back_and_on]

    def running() -> bool:
        moments.pop(0)()
        return bool(moments)

    assert [row["step"] for row in follow(path, 1, running, poll=0)] == [2, 3, 4, 5, 6]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer._file.close()
    writer._file = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    with pytest.raises(UserError, match=r"/dev/full: can't be written \(.*No space left") as error:
        writer.write(line(1))
    assert error.value.exit_code == 1


def test_utilisation_is_shown_where_the_peak_is_known() -> None:
    out = io.StringIO()
    LiveLine(1, out, interval=0).show(line(1) | {"mfu": 0.417})
    assert "640 tokens/s  MFU 42%  ETA" in out.getvalue()


def test_live_line_shows_where_the_run_stands() -> None:
    out = io.StringIO()
    live = LiveLine(4, out, interval=0)
    for step in range(1, 5):
        live.show(line(step))
    first, *_, last = out.getvalue().splitlines()
    assert first == "train 1/4 single  loss 2.500  lr 1.0e-03  grad 0.50  64 samples/s  640 tokens/s  ETA -"
    assert last.startswith("train 4/4 single")
    assert last.endswith("ETA 0:00")


def test_live_line_is_seldom_printed_where_nobody_watches_but_the_last_step_always_is() -> None:
    out = io.StringIO()
    live = LiveLine(100, out, interval=60)
    for step in range(1, 101):
        live.show(line(step))
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["1/100", "100/100"]
