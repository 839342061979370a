import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pyarrow import parquet
from tiny_models import tone

from balsa_ray.audio.decode import AudioCheck, decode
from balsa_ray.synthesis import manifest
from balsa_ray.synthesis.manifest import Manifest, Piece, Source, scan
from balsa_ray.synthesis.plan import Recipe, plan_clip
from balsa_ray.synthesis.survey import _look, read_clips, survey

RECIPE = Recipe("recipe", 0, "tags", {"present": 1}, ("rain",))


def corpus(folder: Path) -> Path:
    """Eight rows, of which the first and the last are good."""
    soundfile.write(folder / "good.wav", tone(440), 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "long.wav", np.zeros(16_000 * 31), 16_000)
    (folder / "text.wav").write_text("not audio")
    names = ["good", "absent", "text", "silent", "long"]
    rows: list[Any] = [{"id": name, "audio": f"{name}.wav", "tags": ["rain"]} for name in names]
    rows.append({"id": "no tags", "audio": "good.wav"})
    rows.append({"id": "slice", "audio": "long.wav", "tags": ["rain"], "start": 30.5, "duration": 0.5})
    rows.append({"id": "late", "audio": "good.wav", "tags": ["rain"], "start": 2})
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(piece: Piece, check: AudioCheck, errors: Path) -> tuple[dict[str, Any], list[str]]:
    recipe = replace(RECIPE, source=Source(audio_check=check))
    found = _look(piece, "digest", recipe, errors)
    return found, [row["error"] for file in errors.glob("*.parquet") for row in parquet.read_table(file).to_pylist()]


@pytest.mark.parametrize(
    ("check", "reasons"),
    [
        ("none", ["row 6: has none of"]),
        (
            "header",
            [
                "row 2: audio: {}/absent.wav: no such file",
                "row 3: audio: {}/text.wav: not readable as audio",
                "row 5: audio: {}/long.wav: 31.0 s, the model reads at most 30 s",
                "row 6: has none of",
                "row 8: audio: {}/good.wav#t=2.0: starts at 2 s, but the recording has 1.00 s",
            ],
        ),
        (
            "full",
            [
                "row 2: audio: ",
                "row 3: audio: ",
                "row 4: audio: {}/silent.wav: silent throughout",
                "row 5: audio: ",
                "row 6: has none of",
                "row 7: audio: {}/long.wav#t=30.5,31.0: silent throughout",
                "row 8: audio: ",
            ],
        ),
    ],
)
def test_a_recording_that_cannot_be_used_is_an_error_row_and_is_not_planned(
    tmp_path: Path, check: AudioCheck, reasons: list[str]
) -> None:
    path = corpus(tmp_path)
    (piece,) = scan(path).pieces
    found, errors = look(piece, check, tmp_path / "errors")
    assert len(errors) == found["bad"] == len(reasons) == 8 - found["clips"]
    for error, reason in zip(sorted(errors), reasons, strict=True):
        assert error.startswith(f"{path}: {reason.format(tmp_path)}")
    usable = [clip for _, clip in read_clips(replace(piece, unusable=found["unusable"]), RECIPE)]
    assert len(usable) == found["clips"] == found["present"]
    assert all(isinstance(clip, dict) for clip in usable)


def test_samples_refer_to_the_slice_that_the_manifest_names(tmp_path: Path) -> None:
    samples = tone(300, seconds=3)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    row = {"id": "a", "audio": "a.wav", "tags": ["rain"], "start": 1.25, "duration": 0.5}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row))
    ((_, clip),) = read_clips(scan(tmp_path / "clips.jsonl").pieces[0], RECIPE)
    (sample,) = plan_clip(RECIPE, clip)
    np.testing.assert_array_equal(decode(sample["audio"][0]), samples[20_000:28_000])


def test_a_row_with_ten_thousand_tags_is_read_and_planned_like_any_other(tmp_path: Path) -> None:
    tags = [f"label number {i}" for i in range(10_000)]
    (tmp_path / "clips.jsonl").write_text(json.dumps({"id": "a", "audio": "a.wav", "tags": tags}))
    (piece,) = scan(tmp_path / "clips.jsonl").pieces
    found, errors = look(piece, "none", tmp_path / "errors")
    assert (found["clips"], errors, len(found["labels"])) == (1, [], 10_000)
    ((_, clip),) = read_clips(piece, RECIPE)
    (sample,) = plan_clip(RECIPE, clip)
    assert sample["metadata"][0].count(", ") == 9_999


class Rows(list[dict[str, Any]]):
    """What the survey asks of a dataset, without a cluster."""

    def map(self, function: Callable[[dict[str, Any]], dict[str, Any]], **_: object) -> "Rows":
        return Rows(map(function, self))

    def take_all(self) -> "Rows":
        return self


def pieces_of(scanned: Manifest) -> Any:
    return Rows(asdict(piece) for piece in scanned.pieces)


def test_files_are_surveyed_together_and_numbered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", 3)
    first = corpus(tmp_path)
    second = tmp_path / "more.jsonl"
    second.write_text("".join(first.read_text().replace('"id": "', '"id": "more-')))
    scanned = scan([str(first), str(second)])
    recipe = replace(RECIPE, source=Source(audio_check="header"), kinds={"present": 1, "joint": 1})
    found = survey(pieces_of(scanned), scanned, recipe, tmp_path / "errors", {})
    assert (found.clips, found.bad_rows, found.planned) == (6, 10, 12)
    good = [(Path(piece.path).name, number) for piece in found.pieces for number, _ in read_clips(piece, recipe)]
    assert good == [(name, number) for name in ("clips.jsonl", "more.jsonl") for number in (1, 4, 7)]
    errors = [row for file in (tmp_path / "errors").iterdir() for row in parquet.read_table(file).to_pylist()]
    assert len({row["id"] for row in errors}) == 10


def test_of_rows_with_one_id_the_first_is_used_and_the_others_say_where_it_stands(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"id": f"{name}-0", "audio": "x", "tags": ["rain"]}, {"id": "same", "audio": "x", "tags": ["rain"]}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write(json.dumps({"id": "b-0", "audio": "x", "tags": ["wind"]}) + "\n{}\n")
    scanned = scan(tmp_path)
    found = survey(pieces_of(scanned), scanned, RECIPE, tmp_path / "errors", {})
    assert (found.clips, found.bad_rows, found.planned, found.labels) == (3, 3, 3, ("rain",))
    kept = [number for piece in found.pieces for number, _ in read_clips(piece, RECIPE)]
    assert kept == [1, 2, 1]
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    errors = [row for file in (tmp_path / "errors").iterdir() for row in parquet.read_table(file).to_pylist()]
    assert sorted(row["error"] for row in errors) == [
        f"{b}: row 2: id: 'same' stands in row 2 of {a} already; ids have to be unique",
        f"{b}: row 3: id: 'b-0' stands in row 1 of {b} already; ids have to be unique",
        f"{b}: row 4: id: missing",
    ]
    assert len({row["id"] for row in errors}) == 3
