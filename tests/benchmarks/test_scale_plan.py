import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "scale_plan.py"


@pytest.fixture(scope="module")
def plan() -> Any:
    spec = spec_from_file_location("scale_plan", FILE)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules["scale_plan"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_driver_has_what_a_cluster_of_ours_gives_its_head(plan: Any) -> None:
    text = (FILE.parents[1] / "cluster/kuberay/base/ray-cluster.yaml").read_text()
    assert f'&head {{cpu: "4", memory: {plan.ASSUMED["driver_memory_gb"]:.0f}Gi}}' in text


def test_hours_are_tokens_by_speed(plan: Any) -> None:
    # 4,000 replies of 90 tokens are 360,000; at 100 a second 3,600 s.
    assert plan.gpu_hours(plan.Work("w", 1000, 4), 90, 100) == 1.0


def test_a_file_holds_a_batch_of_rows(plan: Any) -> None:
    assert plan.files(plan.Work("w", 1024, 3)) == 3
    assert plan.files(plan.Work("w", 3 * 1024 + 1, 1)) == 4


def test_an_engine_has_its_batches_and_waiting_blocks_in_flight(plan: Any) -> None:
    # Of a million rows a block has 3,906: four batches of 256 and two blocks are 8,836 rows.
    assert plan.in_flight_bytes(1_000_000, 256, 10) == 88_360


def test_loads_are_those_worked_out_by_hand(plan: Any) -> None:
    work = plan.Work("w", 2**18, 4)  # 2^20 rows in 1,024 files
    measured = plan.Measured(
        file_bytes=1, flight_bytes=1, stock_bytes=64, training_bytes=4096, look_seconds=3.6,
        planned_per_second=2**20 / 1800,
    )  # fmt: skip
    found = plan.loads(work, measured, batch=256, driver_bytes=2**30, seconds_per_request=0.5)
    # 256 blocks of 4,096 rows, and a piece of the manifest for each 500 clips.
    blocks = (256 + 525) * 70_000 / 2**30
    assert [load.amount for load in found] == pytest.approx(
        [0.0625, blocks, 4.0, 2 * 0.5, 1.024, 3 * 1024 * 0.5 / 3600, 1.0]
    )
    assert {load.limit for load in found[:3]} == {1.0}
    assert found[0].most_clips(work) == 16 * work.clips
    assert found[2].most_clips(work) == work.clips / 4


def test_memory_of_a_resume_is_measured_with_the_projects_own_code(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (plan.stock_bytes(ids, tmp_path / str(ids)) for ids in (100 * 1024, 200 * 1024))
    assert 24 < many < 100  # the parts, all of them joined, and sorted: eight bytes each at the least
    assert few == pytest.approx(many, rel=0.1)
    # Ids that take more memory in the project are seen.
    before = plan.take_stock
    monkeypatch.setattr(plan, "take_stock", lambda *given: [before(*given), bytes(100 * 1024 * 1000)])
    assert plan.stock_bytes(100 * 1024, tmp_path / "heavier") > few + 500


def test_what_is_given_is_no_assumption(
    plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "--clips 1000000 --samples-per-clip 5 --tokens-per-second 1000 --reply-tokens 72 --gpus 10 100"
    more = "--price-per-gpu-hour 2 --samples-per-second 1000 --epochs 3 --ids 4096"
    monkeypatch.setattr(sys, "argv", ["scale_plan.py", *given.split(), *more.split()])
    plan.main()
    printed = capsys.readouterr().out
    assumed = printed.splitlines()[0]
    assert assumed == (
        "assumptions, not measurements: prompt_tokens=150, driver_memory_gb=32, seconds_per_request=0.05"
    )
    # 360 million tokens at 1,000 a second are 100 hours of one GPU.
    rows = [line.split() for line in printed.splitlines()]
    assert ["10", "10.0", "200"] in rows
    assert ["100", "1.0", "200"] in rows
    assert "1,000,000 clips, 5,000,000 rows" in printed
    assert "in 4,883 files" in printed
    assert "training: 3 epochs over all rows at 1000 samples/s take 4.2 h" in printed


def test_two_sizes_are_planned_without_arguments(
    plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale_plan.py", "--ids", "4096"])
    plan.main()
    printed = capsys.readouterr().out
    # Four samples a clip are the default recipe's: 1 + 1 + 1 + 0.5 + 0.5.
    assert "AudioSet-2M: 2,084,320 clips, 8,337,280 rows" in printed
    assert "100 million clips: 100,000,000 clips, 500,000,000 rows" in printed
    assert "tokens_per_second=2500" in printed.splitlines()[0]
