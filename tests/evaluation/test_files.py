from pathlib import Path

import pyarrow as pa
import pytest
from benchmark_files import write_recording
from pyarrow import parquet

from balsa_ray.config import UserError
from balsa_ray.evaluation.files import AudioFolder, named, only, references, rows, with_columns

ROWS = [{"file": "a.wav", "answer": "(b) dog"}, {"file": "b.wav", "answer": " (a) cat"}]
COLUMNS = {"file": str, "answer": str}


def test_a_table_is_the_same_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes('\ufefffile,answer\r\na.wav,(b) dog\r\nb.wav," (a) cat"\r\n'.encode())
    (tmp_path / "t.tsv").write_text("file\tanswer\na.wav\t(b) dog\nb.wav\t (a) cat\n")
    (tmp_path / "t.json").write_text(
        '[{"file": "a.wav", "answer": "(b) dog"}, {"file": "b.wav", "answer": " (a) cat"}]'
    )
    (tmp_path / "t.jsonl").write_text(
        '{"file": "a.wav", "answer": "(b) dog"}\n\n{"file": "b.wav", "answer": " (a) cat"}'
    )
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert rows(file, COLUMNS) == ROWS, file


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file\na.wav\n", "t.csv: row 1: answer: missing"),
        ("t.csv", "file,answer\na.wav,b\nb.wav\n", "row 2: answer: missing"),
        ("t.csv", "file,answer\na.wav,b,c\n", "row 1: has more cells than the header"),
        ("t.csv", "file,answer\n", "holds no rows"),
        ("t.csv", "file,answer\na.wav,  \n", "row 1: answer: empty"),
        ("t.json", '[{"file": "a.wav", "answer": 3}]', "row 1: answer: should be text, is 3"),
        ("t.json", '[{"file": "a.wav", "answer": null}]', "row 1: answer: missing"),
        ("t.json", '[["a.wav", "b"]]', "row 1: should be a mapping of columns to values, is list"),
        ("t.json", '{"file": "a.wav"}', "should be a list of rows, is dict"),
        ("t.json", "[", "can't be read: Expecting value"),
        ("t.json", "[" * 100_000, "can't be read"),
        ("t.json", '[{"file": "a.wav", "answer": "\\ud83d"}]', "can't be read: .*surrogates"),
        ("t.jsonl", '{"file": "a", "answer": "b"}\n\n{', "line 3: not JSON"),
        ("t.parquet", "no parquet", "can't be read"),
        ("t.txt", "a", "not one of .csv, .tsv"),
    ],
)
def test_a_bad_table_is_named_with_row_and_column(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name, COLUMNS)


def test_lists_hold_texts(tmp_path: Path) -> None:
    for value in ("[]", '["a", 1]', '"a"'):
        (tmp_path / "t.json").write_text(f'[{{"choices": {value}}}]')
        with pytest.raises(UserError, match="row 1: choices: should be a list of texts"):
            rows(tmp_path / "t.json", {"choices": list})
    with pytest.raises(UserError, match="no such file"):
        rows(tmp_path / "other.json")


def test_a_published_file_is_found_wherever_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "deep/down/Table.JSON"
    file.parent.mkdir(parents=True)
    file.write_text("[]")
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    assert named(tmp_path, r"table\.json") == [file]
    assert only(file, "whatever", "table") == file
    with pytest.raises(UserError, match="no index there"):
        only(tmp_path, r"index\.json", "index")
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(UserError, match="which of"):
        only(tmp_path, r"table\.json", "table")


def test_a_recording_is_found_by_the_end_of_its_path(tmp_path: Path) -> None:
    for name in (
        "esc/audio/1-A.wav",
        "esc/audio_16k/1-A.wav",
        "kaggle/Piano/302.wav",
        "kaggle/Violin/302.wav",
        "x.flac",
    ):
        write_recording(tmp_path / name)
    (tmp_path / "esc/audio/1-A.txt").write_text("no recording")
    folder = AudioFolder(tmp_path)
    assert folder.find("ESC-50/audio_16k/1-A.wav") == str(tmp_path / "esc/audio_16k/1-A.wav")
    assert folder.find("/home/other/Violin/302.wav") == str(tmp_path / "kaggle/Violin/302.wav")
    assert folder.find("./clips/x.wav") == folder.find("x") == str(tmp_path / "x.flac")
    with pytest.raises(UserError, match=r"302.wav: which recording is it, .*Piano.* or .*Violin"):
        folder.find("302.wav")


def test_another_folders_recording_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    write_recording(tmp_path / "Violin/302.wav")
    folder = AudioFolder(tmp_path)
    assert folder.find("Piano/302.wav", folders=1) == str(tmp_path / "Piano/302.wav")
    assert folder.find("a/Violin/302.wav", folders=1) == str(tmp_path / "Violin/302.wav")
    assert not Path(folder.find("303.wav")).exists()


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_recording(tmp_path / "elsewhere/a.wav")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/audio").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    assert AudioFolder(tmp_path / "data").find("a.wav") == str(tmp_path / "data/audio/a.wav")


def test_recordings_inside_parquet_are_referred_to_and_not_read_with_the_rows(tmp_path: Path) -> None:
    audio = [
        {"bytes": b"RIFF", "path": "a.wav"},
        {"bytes": None, "path": "b.wav"},
        None,
        {"bytes": b"x", "path": "d.wav"},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"id": list("abcd"), "audio": pa.array(audio, kind), "labels": [["x", "y"], ["x"], [], None]})
    file = tmp_path / "t.parquet"
    parquet.write_table(table, file, row_group_size=3)
    assert rows(file) == [
        {"id": "a", "audio": {"path": "a.wav"}, "labels": ["x", "y"]},
        {"id": "b", "audio": {"path": "b.wav"}, "labels": ["x"]},
        {"id": "c", "audio": None, "labels": []},
        {"id": "d", "audio": {"path": "d.wav"}, "labels": None},
    ]
    assert references(file) == [f"{file}#row=1", None, None, f"{file}#row=4"]
    parquet.write_table(pa.Table.from_pylist(ROWS), file)
    assert references(file) == [None, None]


def test_tables_are_known_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.csv").write_text("\ufefffile,answer\n")
    (tmp_path / "mine.TSV").write_text("answer\tmore\n")
    (tmp_path / "other.csv").write_text("file\n")
    (tmp_path / "empty.csv").write_text("")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "mine.parquet")
    found = [file.name for file in with_columns(tmp_path, ("answer", "else"))]
    assert sorted(found) == ["mine.TSV", "mine.csv", "mine.parquet"]
    assert with_columns(tmp_path / "other.csv", ("answer",)) == [tmp_path / "other.csv"]
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"broken\.csv: can't be read"):
        with_columns(tmp_path, ("answer",))
