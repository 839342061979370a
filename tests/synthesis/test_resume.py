"""What stands and what is left, as pure functions; then runs that are cut, changed and taken up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pyarrow import parquet
from ray.exceptions import RayError
from synthesis_outputs import replies, write_clips
from tiny_models import TinyCheckpoints, tiny_llama, tone

from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash
from balsa_ray.schema import ERROR, SAMPLE
from balsa_ray.storage import sole_writer
from balsa_ray.synthesis import gates, pipeline
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.joining import join_files
from balsa_ray.synthesis.output import row_files, write_rows
from balsa_ray.synthesis.pipeline import until_all_stand
from balsa_ray.synthesis.resume import (
    Change,
    Stock,
    changes,
    contents,
    contents_of,
    drop_others,
    is_among,
    row_numbers,
    take_stock,
    together,
    weigh,
)


def row(number: int, **more: Any) -> dict[str, Any]:
    found = {"id": stable_hash(number), "kind": "present", "strategy": "", "gate": "passed", "audio": ["/a.wav"]}
    return found | {"present": ["rain"], "response": f"reply {number}", "prompt_tokens": 7, "response_tokens": 3} | more


def ids_in(output: Path) -> list[str]:
    return [row["id"] for file in row_files(output) for row in parquet.read_table(file, columns=["id"]).to_pylist()]


def test_numbers_of_rows_are_found_among_many(tmp_path: Path) -> None:
    ids = [stable_hash(i) for i in range(200)]
    known = np.sort(row_numbers(ids[::2]))
    assert is_among(row_numbers(ids), known).tolist() == [True, False] * 100
    assert not is_among(row_numbers(ids), row_numbers([])).any()
    assert is_among(row_numbers([]), known).tolist() == []
    assert row_numbers(["00000000000000ff", "f" * 16]).tolist() == [255, 2**64 - 1]


def test_rows_that_two_tasks_wrote_stand_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "samples", [row(i) for i in range(6)], SAMPLE)
    write_rows(tmp_path / "samples", [row(i) for i in range(4, 9)], SAMPLE)  # run again, with other rows beside them
    write_rows(tmp_path / "rejected", [row(10, gate="loops"), row(11, gate="empty")], SAMPLE)
    write_rows(tmp_path / "errors", [row(10), row(12)], ERROR)  # failed once, was answered the second time
    write_rows(tmp_path / "errors", [row(11)], ERROR)
    write_rows(tmp_path / "errors", [{"id": stable_hash("bad row"), "error": "row 3"}], ERROR)
    stock = take_stock(tmp_path)
    assert sorted(ids_in(tmp_path)) == sorted(stable_hash(i) for i in [*range(9), 10, 11, 12, "bad row"])
    assert stock.rows == 12
    assert is_among(row_numbers(ids_in(tmp_path)), stock.ids).all()
    assert {(count["gate"], count["rows"], count["response_tokens"]) for count in stock.counts} >= {
        ("loops", 1, 3),
        ("empty", 1, 3),
        ("error", 1, 0),
    }
    files = {file: file.read_bytes() for file in row_files(tmp_path)}
    again = take_stock(tmp_path)
    assert again.ids.tolist() == stock.ids.tolist()
    assert files == {file: file.read_bytes() for file in row_files(tmp_path)}


def test_an_empty_output_has_no_stock(tmp_path: Path) -> None:
    stock = take_stock(tmp_path)
    assert (len(stock.ids), stock.rows, stock.counts) == (0, 0, [])


def test_a_change_is_told_by_name() -> None:
    was = {"recipe": "a", "limit": None, "prompts": "p" * 99, "seed": 0}
    found = changes(was, {"recipe": "b", "limit": 5, "prompts": "p" * 99, "seed": 0, "clips": 3})
    assert found == {"clips": "null -> 3", "limit": "null -> 5"}


@pytest.mark.parametrize(
    ("planned", "alike", "stand"),
    [
        ([row(i) for i in range(8)], True, 8),  # fewer clips
        ([row(i) for i in range(15)], True, 10),  # more clips
        ([row(i) for i in range(20, 30)], True, 0),  # another prompt or model: other ids
        ([row(i) for i in range(10)], False, 0),  # other gates
        ([row(i, audio=["/b.wav"]) for i in range(10)], True, 0),  # recordings lie elsewhere
        ([row(i, present=["rain", "wind"]) if i else row(i) for i in range(10)], True, 1),  # other labels are known
        ([row(i, source_license=["CC0"]) if i else row(i) for i in range(10)], True, 1),  # other columns to carry
        ([row(i, source_license=[None]) for i in range(10)], True, 10),
    ],
)
def test_rows_stand_that_would_be_made_just_so(
    tmp_path: Path, planned: list[dict[str, Any]], alike: bool, stand: int
) -> None:
    for first in (0, 4):
        write_rows(tmp_path / "samples", [row(i) for i in range(first, 6)], SAMPLE)  # two stand twice
    write_rows(tmp_path / "rejected", [row(i) for i in range(6, 10)], SAMPLE)
    held = [contents_of(str(file)) for file in row_files(tmp_path)]
    wanted = [contents(planned[:3]), contents(planned[3:]), contents([])]
    both = {stable_hash(i) for i in range(10)} & {one["id"] for one in planned}
    assert weigh(held, wanted, alike) == Change(10, stand, len(both), len(planned))
    for file in row_files(tmp_path):
        drop_others(str(file), together(wanted if alike else [], "keys"))
    assert len(set(ids_in(tmp_path))) == stand == take_stock(tmp_path).rows


def test_a_change_says_what_happens_to_the_rows() -> None:
    change = Change(rows=1200, stand=900, planned_before=1000, planned=1300)
    assert change.line("redo") == (
        "900 of 1,200 rows stand; 300 are redone or dropped, and 400 of 1,300 planned ones are to be made"
    )
    assert change.line("keep") == "all 1,200 rows stand as they are, none is redone; 300 of 1,300 are new"


class Rounds:
    """Rounds of a run of ten rows; each brings some rows and then perhaps fails."""

    def __init__(self, *rounds: tuple[int, bool]) -> None:
        self.rounds, self.rows = list(rounds), 0

    def make(self, stock: Stock) -> None:
        assert stock.rows == self.rows
        brought, fails = self.rounds.pop(0)
        self.rows += brought
        if fails:
            raise RayError("the engine was killed while it started")

    def take(self) -> Stock:
        return Stock(np.empty(0, np.uint64), self.rows, [])


def test_a_round_that_fails_is_followed_by_another_as_long_as_rows_come(capsys: pytest.CaptureFixture[str]) -> None:
    run = Rounds((4, True), (1, False), (3, True), (2, False))
    until_all_stand(run.make, 10, run.take(), run.take)
    assert (run.rows, run.rounds) == (10, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "synthesis: stopped: the engine was killed while it started; 4 of 10 rows stand, going on with the rest"
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ([(0, True)], "synthesis: stopped: the engine was killed while it started; the same command goes on"),
        ([(4, True), (0, True)], "synthesis: stopped: the engine was killed"),
        ([(9, False), (0, False)], "synthesis: 9 rows came of 10; the same command goes on"),
        ([(11, False)], "11 rows stand and 10 were planned"),
    ],
)
def test_a_round_without_rows_ends_the_run(rounds: list[tuple[int, bool]], reason: str) -> None:
    run = Rounds(*rounds)
    with pytest.raises(UserError, match=reason) as ended:
        until_all_stand(run.make, 10, run.take(), run.take)
    assert ended.value.exit_code == 1
    assert not run.rounds


# Runs on a real Ray in which a function stands in for the LLM.


@pytest.fixture
def make(
    ray_session: None, tiny_checkpoints: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Synthesises about twenty clips; where a file `fails` lies, every third row fails."""
    fails = tmp_path / "fails"

    def vllm_chain(*_: Any, **__: Any) -> Callable[[Any], Any]:
        def reply(planned: dict[str, Any]) -> dict[str, Any]:
            sample = json.loads(planned["planned"])
            error = "ValueError: no" if fails.exists() and int(sample["id"], 16) % 3 == 0 else ""
            told = {"response": f"I hear {sample['present'][0]}.", "prompt_tokens": 5, "response_tokens": 4}
            return {"row": json.dumps(planned), "finish_reason": "stop", "error": error, **told}

        return lambda rows: rows.map(reply, num_cpus=0.5)

    monkeypatch.setattr(pipeline, "vllm_chain", vllm_chain)
    monkeypatch.setattr(pipeline, "ROWS_PER_FILE", 4)
    monkeypatch.setattr(pipeline, "join_files", lambda *_: None)  # Which files stood is what these tests look at.
    write_clips(tmp_path / "clips.jsonl", 20)

    def run(**more: Any) -> dict[str, Any]:
        values = {"output": tmp_path / "out", "input": tmp_path / "clips.jsonl", "audio_check": "none"}
        kinds = {"kinds": {"present": 1, "combined": 1, "difference": 1}}
        values |= kinds | {"model": tiny_checkpoints.text} | more
        return pipeline.synthesize(SynthesizeConfig.model_validate(values))

    return run


def files(output: Path) -> dict[str, tuple[int, bytes]]:
    found = sorted(path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_a_complete_run_is_left_alone_and_a_cut_one_is_taken_up(
    make: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = make()
    complete, made = files(tmp_path / "out"), replies(tmp_path / "out")
    assert make() == report
    assert "is complete" in capsys.readouterr().out
    assert files(tmp_path / "out") == complete

    (tmp_path / "out" / "report.json").unlink()
    lost = row_files(tmp_path / "out")[::2]
    for file in lost:
        file.rename(file.with_name(f".{file.name}.1-0.partial"))
    again = make()
    assert replies(tmp_path / "out") == made
    kept = {name: bytes_of for name, bytes_of in complete.items() if name.endswith("parquet")}
    for file in lost:
        del kept[str(file.relative_to(tmp_path / "out"))]
    assert kept.items() <= files(tmp_path / "out").items()  # What stood was not written anew.
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert {name: report[name] for name in ("planned", "samples", "by_kind", "tokens")} == {
        name: again[name] for name in ("planned", "samples", "by_kind", "tokens")
    }
    assert f"of {report['planned']} rows stand" in capsys.readouterr().out


def test_an_output_whose_files_were_joined_goes_on_like_any_other(
    make: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {"kinds": {"present": 1, "combined": 1, "difference": 1, "absent": 1}}
    make(output=tmp_path / "at once", **everything)
    monkeypatch.setattr(pipeline, "join_files", join_files)
    (tmp_path / "fails").touch()
    make()
    assert len(row_files(tmp_path / "out", errors=False)) <= 2
    (tmp_path / "fails").unlink()
    make()
    report = make(**everything)
    assert replies(tmp_path / "out") == replies(tmp_path / "at once")
    assert len(row_files(tmp_path / "out")) <= 2
    assert report["planned"] == len(replies(tmp_path / "out"))


def test_only_rows_that_failed_are_tried_again(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    report = make()
    first, stood = replies(tmp_path / "out"), files(tmp_path / "out" / "samples")
    assert report["errors"]["engine"] == sum(folder == "errors" for folder, _, _ in first.values()) > 0
    (tmp_path / "fails").unlink()
    report = make()
    second = replies(tmp_path / "out")
    assert report["errors"]["engine"] == 0
    assert second.keys() == first.keys()
    assert {folder for folder, _, _ in second.values()} <= {"samples", "rejected"}
    assert stood.items() <= files(tmp_path / "out" / "samples").items()


@pytest.mark.parametrize(
    ("change", "name", "stand"),
    [
        ({"prompts": "prompts.yaml"}, "prompts", 0),
        ({"model": "other"}, "model", 0),
        ({"sampling": {"max_tokens": 99}}, "sampling.max_tokens", 0),
        ({"kinds": {"present": 1}}, "kinds.combined", 20),
        ({"clips": 16}, "input", 16),
        ({"gates": 99}, "gates", 0),
    ],
)
def test_a_changed_recipe_is_told_before_anything_starts(
    make: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    name: str,
    stand: int,
) -> None:
    kinds = {"kinds": {"present": 1}} if "clips" in change else {}
    report = make(**kinds)
    rows, before = report["planned"], files(tmp_path / "out")
    if "prompts" in change:
        (tmp_path / "prompts.yaml").write_text(
            "".join(
                f"- {{id: {kind}-x, kind: {kind}, clips: {1 + (kind == 'difference')}, text: What}}\n"
                for kind in ("present", "combined", "difference")
            )
        )
        change = {"prompts": tmp_path / "prompts.yaml"}
    if "model" in change:
        change = {"model": str(tiny_llama(tmp_path / "other", seed=1))}
    if "clips" in change:
        write_clips(tmp_path / "clips.jsonl", change["clips"])
    if "gates" in change:
        monkeypatch.setattr(gates, "VERSION", change["gates"])
    other = kinds | {key: change[key] for key in change if key in SynthesizeConfig.model_fields and key != "clips"}

    with pytest.raises(UserError) as refused:
        make(**other)
    assert refused.value.exit_code == 2
    assert f"{name} (" in str(refused.value)
    assert f"{stand} of {rows} rows stand; {rows - stand} are redone or dropped" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files(tmp_path / "out") == before

    report = make(**other, on_change="redo")
    assert report["samples"] + report["rejected"] == report["planned"] == len(replies(tmp_path / "out"))
    redone = replies(tmp_path / "out")
    assert make(**other) == report
    fresh = make(**other, output=tmp_path / "fresh")
    assert (fresh["planned"], replies(tmp_path / "fresh")) == (report["planned"], redone)


def test_a_change_that_leaves_every_row_as_it_is_needs_no_word(
    make: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    stood = files(tmp_path / "out" / "samples")
    with (tmp_path / "clips.jsonl").open("a") as clips:
        clips.write("nonsense\n")  # a changed input, of which no row is planned otherwise
    report = make(kinds={"present": 1, "combined": 1, "difference": 1, "absent": 0.5})
    assert "60 of 60 rows stand; 0 are redone or dropped" in capsys.readouterr().out
    assert report["errors"]["manifest"] == 1
    assert len(replies(tmp_path / "out")) == report["planned"] > 61
    assert stood.items() <= files(tmp_path / "out" / "samples").items()


def test_a_dry_run_says_what_there_is_to_make_and_writes_nothing(
    make: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = make(dry_run=True, tokens_per_second=100, sampling={"max_tokens": 36})
    assert not (tmp_path / "out").exists()
    assert told["rows"] == 60
    assert (told["response_tokens_at_most"], told["hours_at_most"]) == (2160, 0.006)
    assert f"60 rows of 20 clips, {told['prompt_tokens']:,} tokens to read" in capsys.readouterr().out
    make()
    (tmp_path / "out" / "report.json").unlink()
    row_files(tmp_path / "out")[0].unlink()
    before = files(tmp_path / "out")
    assert make(dry_run=True)["rows"] == 60 - len(replies(tmp_path / "out"))
    assert files(tmp_path / "out") == before


def recordings(folder: Path, number: int) -> None:
    for i in range(number):
        soundfile.write(folder / f"{i}.wav", tone(200 + 10 * i, 0.2), 16_000)


def cut(output: Path, files: int) -> None:
    """What a killed run leaves."""
    (output / "report.json").unlink()
    for file in row_files(output)[:files]:
        file.unlink()


@pytest.mark.parametrize("lost_files", [1, 6])
def test_a_recording_that_goes_and_comes_back_costs_no_row(
    make: Callable[..., dict[str, Any]], tmp_path: Path, lost_files: int
) -> None:
    recordings(tmp_path, 20)
    made = make(audio_check="header") and replies(tmp_path / "out")
    cut(tmp_path / "out", lost_files)
    (tmp_path / "3.wav").rename(tmp_path / "elsewhere.wav")
    report = make(audio_check="header")
    assert report["errors"]["manifest"] == 1
    now = {name for name, (folder, _, _) in replies(tmp_path / "out").items() if folder != "errors"}
    assert report["samples"] + report["rejected"] == len(now)
    assert len(now) == report["planned"] - 1 + report["kept"]
    fresh = make(audio_check="header", output=tmp_path / "without")
    assert {name for name, (folder, _, _) in replies(tmp_path / "without").items() if folder != "errors"} <= now
    assert fresh["kept"] == 0
    # The same command tries again what it could not use, and nothing else.
    (tmp_path / "elsewhere.wav").rename(tmp_path / "3.wav")
    report = make(audio_check="header")
    assert report["errors"] == {"manifest": 0, "engine": 0}
    assert made.items() <= replies(tmp_path / "out").items()
    assert make(audio_check="header") == report


def test_speeds_stay_those_of_the_last_rows_that_were_made(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with (tmp_path / "clips.jsonl").open("a") as clips:
        clips.write("nonsense\n")
    first = make()
    again = make()
    assert first["errors"]["manifest"] == again["errors"]["manifest"] == 1
    assert first["rows_per_second"] == again["rows_per_second"] > 0
    assert {**first, "identity": 0} == {**again, "identity": 0}


def test_a_dry_run_after_a_change_counts_what_is_to_be_redone(
    make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    make(kinds={"present": 1}, limit=12)
    grown = {"kinds": {"present": 1, "combined": 1}, "limit": 12}
    assert make(**grown, dry_run=True, on_change="redo")["rows"] == 12
    assert make(kinds={"present": 1}, limit=12, seed=5, dry_run=True, on_change="redo")["rows"] == 12
    assert make(kinds={"present": 1}, limit=12, seed=5, dry_run=True, on_change="keep")["rows"] == 12


def test_no_bad_input_ends_a_run(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    recordings(tmp_path, 20)
    sound, rate = tone(300, 0.5), 16_000
    good = {"u8": "PCM_U8", "s24": "PCM_24", "float": "FLOAT"}
    for name, subtype in good.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, rate, subtype=subtype)
    soundfile.write(tmp_path / "six.wav", np.stack([sound] * 6, axis=1), rate)
    soundfile.write(tmp_path / "fast.wav", tone(300, 6), 192_000)
    soundfile.write(tmp_path / "nan.wav", np.full(9_000, np.nan), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.empty(0), rate)
    soundfile.write(tmp_path / "hours.flac", np.zeros(3 * 3600 * 1_000, np.int16), 1_000)
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "headless.raw").write_bytes(b"\0" * 64)
    (tmp_path / "circle.wav").symlink_to(tmp_path / "circle.wav")
    names = [*good, "six", "fast"]
    bad = {
        "missing": "no such file", "nan": "NaN", "empty": "no samples", "text": "not readable as audio",
        "circle": "Symlink loop",
    }  # fmt: skip
    lines = [json.dumps({"id": name, "audio": f"{name}.wav", "tags": ["rain"]}) for name in (*names, *bad)]
    rows: dict[str, Any] = {
        "hours": {"audio": "hours.flac", "tags": ["rain"]},
        "headless": {"audio": "headless.raw", "tags": ["rain"]},
        "nul": {"audio": "nul\0.wav", "tags": ["rain"]},
        "half": {"audio": "0.wav", "tags": ["rain\ud83d"]},
        "no metadata": {"audio": "0.wav"},
        "far": {"audio": "0.wav", "tags": ["rain"], "start": 10**400},
        "clip-3": {"audio": "0.wav", "tags": ["rain"]},
    }
    lines += [json.dumps({"id": name} | row) for name, row in rows.items()]
    lines += ["[" * 100_000, '{"id": "digits", "start": ' + "9" * 5_000 + "}", "no json", "[1]"]
    with (tmp_path / "clips.jsonl").open("ab") as clips:
        clips.write("\n".join(lines).encode() + b'\n{"id": "caf\xe9"}\n')
        tags = [f"label number {i}" for i in range(10_000)]
        clips.write(json.dumps({"id": "many", "audio": "0.wav", "tags": tags}).encode() + b"\n")
    report = make(audio_check="full")
    assert report["errors"] == {"manifest": len(bad) + len(rows) + 5, "engine": 0}
    reasons = "\n".join(report["unusable"])
    assert all(f"{tmp_path}/clips.jsonl: row " in reason for reason in report["unusable"])
    for name, reason in bad.items():
        assert any(f"{name}.wav" in line and reason in line for line in report["unusable"]), name
    for reason in (
        "the model reads at most 30 s",
        "half of a character",
        "has none of tags",
        "start: should be",
        "'clip-3' stands in row 4",
        "not valid JSON",
        "not UTF-8",
        "should be a mapping",
        "not readable as JSON",
    ):
        assert reason in reasons, reason
    assert report["clips"] == 20 + len(names) + 1
    assert report["samples"] + report["rejected"] + report["errors"]["manifest"] == report["planned"]


def test_two_runs_do_not_write_to_one_output(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with sole_writer(tmp_path / "out"), pytest.raises(UserError, match="another run is writing there"):
        make()
    assert make()["samples"] + make()["rejected"] > 0


def test_rows_of_another_recipe_can_be_kept_beside_the_new_ones(
    make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    old = make()
    first = replies(tmp_path / "out")
    report = make(seed=1, on_change="keep")
    both = replies(tmp_path / "out")
    assert first.items() <= both.items()
    assert report["kept"] == len(first) == old["planned"]
    assert len(both) == report["kept"] + report["planned"]
    assert make(seed=1) == report
    make(seed=1, on_change="redo", limit=20)
    assert not first.keys() & replies(tmp_path / "out").keys()
