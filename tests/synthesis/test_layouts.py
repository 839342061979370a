"""Each published layout, in a few rows written as the corpus writes them."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet
from tiny_models import tone

from balsa_ray.audio.decode import decode
from balsa_ray.config import UserError
from balsa_ray.identity import stable_hash
from balsa_ray.schema import SOURCE
from balsa_ray.synthesis import manifest
from balsa_ray.synthesis.layouts import LAYOUTS, Format
from balsa_ray.synthesis.manifest import Source, read_class_labels, read_piece, scan
from balsa_ray.synthesis.plan import Recipe, plan_groups
from balsa_ray.synthesis.survey import read_clips

CLASS_LABELS = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n72,/t/dd00088,"Gush, spurt"\n'
NAMES = {"/m/09x0r": "Speech", "/t/dd00088": "Gush, spurt"}

PUBLISHED: dict[Format, tuple[str, str, list[dict[str, Any]]]] = {
    "audioset": (
        "balanced_train_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:31 2017\n"
        "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        '--aE2O5G5WE, 0.000, 10.000, "/m/09x0r"\n',
        [
            {"id": "--PJHxphWEs", "audio": "--PJHxphWEs.wav", "tags": ["Speech", "Gush, spurt"]},
            {"id": "--aE2O5G5WE", "audio": "--aE2O5G5WE.wav", "tags": ["Speech"]},
        ],
    ),
    "audioset_strong": (
        "audioset_train_strong.tsv",
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        "b0RFKhbpFJA_30000\t0.000\t10.000\t/m/09x0r\n"
        "b0RFKhbpFJA_30000\t4.753\t5.720\t/t/dd00088\n"
        "YxlGt805lTA_30000\t2.627\t7.237\t/m/09x0r\n",
        [
            {
                "id": "b0RFKhbpFJA_30000",
                "audio": "b0RFKhbpFJA_30000.wav",
                "events": [
                    {"label": "Speech", "start": 0.0, "end": 10.0},
                    {"label": "Gush, spurt", "start": 4.753, "end": 5.72},
                ],
            },
            {
                "id": "YxlGt805lTA_30000",
                "audio": "YxlGt805lTA_30000.wav",
                "events": [{"label": "Speech", "start": 2.627, "end": 7.237}],
            },
        ],
    ),
    "audiocaps": (
        "train.csv",
        "audiocap_id,youtube_id,start_time,caption\n"
        '91139,r1nicOVtvkQ,130,"A woman talks nearby, as water pours"\n'
        "58146,UDGBjjwyaqE,20,Multiple clanging and clanking sounds\n",
        [
            {"id": "91139", "audio": "r1nicOVtvkQ.wav", "caption": "A woman talks nearby, as water pours"},
            {"id": "58146", "audio": "UDGBjjwyaqE.wav", "caption": "Multiple clanging and clanking sounds"},
        ],
    ),
    "clotho": (
        "clotho_captions_development.csv",
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
        "Distorted AM Radio noise.wav,A muddled noise.,Radio noise.,Static.,A signal.,Heavy static.\n",
        [
            {
                "id": "Distorted AM Radio noise.wav",
                "audio": "Distorted AM Radio noise.wav",
                "caption": "A muddled noise. Radio noise. Static. A signal. Heavy static.",
            }
        ],
    ),
    "fsd50k": (
        "dev.csv",
        "fname,labels,mids,split\n"
        '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
        "16399,Chirp_and_tweet,/m/07pggtn,val\n",
        [
            {"id": "64760", "audio": "64760.wav", "tags": ["Electric guitar", "Guitar", "Music"]},
            {"id": "16399", "audio": "16399.wav", "tags": ["Chirp and tweet"]},
        ],
    ),
    "vggsound": (
        "vggsound.csv",
        '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"female speech, woman speaking",train\n',
        [
            {"id": "---g-f_I2yQ_000001", "audio": "---g-f_I2yQ_000001.wav", "tags": ["people marching"]},
            {"id": "--0PQM4-hqg_000030", "audio": "--0PQM4-hqg_000030.wav", "tags": ["female speech, woman speaking"]},
        ],
    ),
    "esc50": (
        "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "1-17150-A-12.wav,1,12,crackling_fire,True,17150,A\n",
        [
            {"id": "1-100032-A-0.wav", "audio": "1-100032-A-0.wav", "tags": ["dog"]},
            {"id": "1-17150-A-12.wav", "audio": "1-17150-A-12.wav", "tags": ["crackling fire"]},
        ],
    ),
    "wavcaps": (
        "as_final.json",
        json.dumps(
            {
                "num_captions_per_audio": 1,
                "data": [
                    {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind is blowing.", "audio": "wav_path", "duration": 10.0},
                    {"id": "180913", "caption": "Bells ring.", "duration": 31.2, "tags": ["field-recording"]},
                ],
            }
        ),
        [
            {"id": "Yb0RFKhbpFJA.wav", "audio": "Yb0RFKhbpFJA.flac", "caption": "Wind is blowing."},
            {"id": "180913", "audio": "180913.flac", "caption": "Bells ring."},
        ],
    ),
}


def rows_of(paths: Any, source: Source) -> list[Any]:
    """The rows, without the columns that samples only carry."""
    rows = [row for piece in scan(paths, source=source).pieces for _, row in read_piece(piece, source)]
    return [
        {k: v for k, v in row.items() if not k.startswith(SOURCE)} if isinstance(row, dict) else row for row in rows
    ]


def recipe(source: Source) -> Recipe:
    return Recipe("", 0, "mixed", {"present": 1}, (), source)


def wav(frequency: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(frequency, 0.1), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_every_layout_has_a_test() -> None:
    assert set(PUBLISHED) | {"manifest", "huggingface", "webdataset"} == set(LAYOUTS)


@pytest.mark.parametrize("layout", PUBLISHED)
@pytest.mark.parametrize("rows_per_piece", [1, 500])
def test_a_published_table_becomes_clips(
    layout: Format, rows_per_piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", rows_per_piece)
    monkeypatch.setattr(manifest, "ROWS_PER_PIECE", rows_per_piece)
    name, content, expected = PUBLISHED[layout]
    file = tmp_path / name
    file.write_text(content, "utf-8")
    source = Source(layout, audio_root="/recordings", class_labels=NAMES)
    assert rows_of(file, source) == expected
    assert len(scan(file, source=source).pieces) == (len(expected) if rows_per_piece == 1 else 1)
    clips = [clip for piece in scan(file, source=source).pieces for _, clip in read_clips(piece, recipe(source))]
    assert [clip["audio"] for clip in clips] == [f"/recordings/{row['audio']}" for row in expected]


@pytest.mark.parametrize("layout", PUBLISHED)
def test_the_same_through_a_uri(layout: Format, tmp_path: Path) -> None:
    name, content, expected = PUBLISHED[layout]
    fsspec.filesystem("memory").pipe(f"/{layout}/{name}", content.encode())
    source = Source(layout, class_labels=NAMES)
    assert rows_of(f"memory://{layout}", source) == expected
    (_, clip), *_ = read_clips(scan(f"memory://{layout}", source=source).pieces[0], recipe(source))
    assert clip["audio"] == f"memory://{layout}/{expected[0]['audio']}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("class_labels_indices.csv", CLASS_LABELS),
        ("ontology.json", json.dumps([{"id": mid, "name": name, "child_ids": []} for mid, name in NAMES.items()])),
        ("mid_to_display_name.tsv", "/m/09x0r\tSpeech\n/t/dd00088\tGush, spurt\n"),
    ],
)
def test_names_of_labels_are_read_from_every_file_that_has_them(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_class_labels(str(tmp_path / name)) == NAMES


def test_files_without_names_of_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    for name in ("x.json", "absent.csv"):
        with pytest.raises(UserError, match=f"class_labels: .*{name}: neither"):
            read_class_labels(str(tmp_path / name))


def test_columns_rename_and_combine(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(PUBLISHED["audiocaps"][1])
    source = Source("audiocaps", columns={"audio": "Y{youtube_id}_{start_time}.flac", "id": "youtube_id"})
    assert rows_of(tmp_path / "train.csv", source)[0] == {
        "id": "r1nicOVtvkQ",
        "audio": "Yr1nicOVtvkQ_130.flac",
        "caption": "A woman talks nearby, as water pours",
    }


@pytest.mark.parametrize(
    ("layout", "carried"),
    [
        ("audioset", {"source_start_seconds": "30.000", "source_end_seconds": "40.000"}),
        ("audioset_strong", {}),
        ("audiocaps", {"source_youtube_id": "r1nicOVtvkQ", "source_start_time": "130"}),
        ("vggsound", {"source_split": "test"}),
    ],
)
def test_columns_that_are_no_field_are_carried(layout: Format, carried: dict[str, str], tmp_path: Path) -> None:
    name, content, _ = PUBLISHED[layout]
    (tmp_path / name).write_text(content)
    source = Source(layout, class_labels=NAMES)
    (_, clip), *_ = read_clips(scan(tmp_path / name, source=source).pieces[0], recipe(source))
    assert carried.items() <= clip["sources"].items()
    assert not {"source_positive_labels", "source_label", "source_caption"} & clip["sources"].keys()


def test_a_manifest_s_further_columns_are_carried_as_text(tmp_path: Path) -> None:
    row = {"id": "a", "audio": "a.wav", "sentence": "Rain.", "license": "CC0", "year": 2019, "box": [1, None]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"nothing": None, "source_page": "p"}))
    source = Source(columns={"caption": "sentence"})
    ((_, clip),) = read_clips(scan(tmp_path / "a.jsonl", source=source).pieces[0], recipe(source))
    assert clip["sources"] == {
        "source_license": "CC0", "source_year": "2019", "source_box": "[1, null]", "source_page": "p",
    }  # fmt: skip
    run = replace(recipe(source), kinds={"joint": 1}, columns=("source_license", "source_x"))
    (sample, _) = plan_groups(run, [clip, clip | {"id": "b", "sources": {}}])
    assert sorted(map(str, sample["source_license"])) == ["CC0", "None"]
    assert sample["source_x"] == [None, None]


def test_rows_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    table = tmp_path / "segments.csv"
    table.write_bytes(b'#\nid, 0, 10, "/m/none"\nshort, 0\ncaf\xe9, 0, 10, "/m/09x0r"\nlast, 0, 10, "/m/09x0r"\n')
    found = rows_of(table, Source("audioset", class_labels=NAMES))
    reasons = [str(row).removeprefix(f"{table}: ") for row in found[:3]]
    assert reasons == [
        "row 2: tags: '/m/none' is not in class_labels",
        "row 3: has 2 cells; the columns are YTID, start_seconds, end_seconds, positive_labels",
        "row 4: not UTF-8",
    ]
    assert found[3]["id"] == "last"
    wrong = rows_of(table, Source("esc50"))
    assert "has 4 cells" in str(wrong[0])
    (tmp_path / "dev.csv").write_text("fname,label\n1,dog\n")
    (row,) = rows_of(tmp_path / "dev.csv", Source("fsd50k"))
    assert str(row).endswith("dev.csv: row 2: tags: no column 'labels'; there are fname, label")


def test_a_cell_may_hold_line_breaks_and_numbers_count_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", 2)
    rows = "".join(f'{i},y{i},0,"Line one\nof clip {i}"\n' for i in range(5))
    (tmp_path / "train.csv").write_text("\ufeffaudiocap_id,youtube_id,start_time,caption\n" + rows)
    source = Source("audiocaps")
    found = [row for piece in scan(tmp_path / "train.csv", source=source).pieces for row in read_piece(piece, source)]
    assert [(number, row["caption"]) for number, row in found] == [(i + 2, f"Line one\nof clip {i}") for i in range(5)]


def test_a_cell_may_hold_ten_thousand_tags(tmp_path: Path) -> None:
    tags = ",".join(f"Label_number_{i}" for i in range(10_000))
    (tmp_path / "dev.csv").write_text(f'fname,labels,mids,split\n1,"{tags}",,train\n')
    (row,) = rows_of(tmp_path / "dev.csv", Source("fsd50k"))
    assert (len(row["tags"]), row["tags"][-1]) == (10_000, "Label number 9999")


def test_limit_counts_over_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"id": f"{name}{i}"}) + "\n" for i in range(3)))
    files = [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    for paths in (files, str(tmp_path), f"{tmp_path}/*.jsonl"):
        pieces = scan(paths, 4).pieces
        assert [(number, row["id"]) for piece in pieces for number, row in read_piece(piece)] == [
            (1, "a0"), (2, "a1"), (3, "a2"), (1, "b0"),
        ]  # fmt: skip
    assert scan(files).digest != scan(files[::-1]).digest != scan(files[:1]).digest


def hub_parquet(path: Path, count: int, first: int = 0) -> None:
    names = ["dog", "crackling_fire"]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    schema = pa.schema(
        [
            ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("sentence", pa.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {"audio": {"bytes": wav(200 + 50 * i), "path": f"{i}.wav"}, "label": i % 2, "sentence": f"Number {i}."}
        for i in range(first, first + count)
    ]
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=3)


def test_shards_of_hugging_face_parquet_become_clips_that_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_PIECE", 2)
    hub_parquet(tmp_path / "train-00000-of-00002.parquet", 4)
    hub_parquet(tmp_path / "train-00001-of-00002.parquet", 2, first=4)
    source = Source("huggingface", columns={"tags": "label", "caption": "{sentence}"})
    rows = rows_of(tmp_path, source)
    assert [row["id"] for row in rows[3:5]] == ["train-00000-of-00002-4", "train-00001-of-00002-1"]
    assert (rows[1]["tags"], rows[1]["caption"]) == (["crackling fire"], "Number 1.")
    for i, row in enumerate(rows):
        assert (decode(row["audio"]) == decode(wav(200 + 50 * i))).all()


def test_shards_whose_rows_are_called_alike_stay_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        hub_parquet(tmp_path / split / "0000.parquet", 2)
        shard(tmp_path / split / "0.tar", {"a.wav": wav(200), "a.txt": b"Rain."})
    rows = rows_of(tmp_path, Source("huggingface", columns={"tags": "label"}))
    assert [row["id"] for row in rows] == ["test/0000-1", "test/0000-2", "train/0000-1", "train/0000-2"]
    assert [row["id"] for row in rows_of(tmp_path, Source("webdataset"))] == ["test/0/a", "train/0/a"]


def test_a_damaged_row_group_is_error_rows_and_the_rest_is_read(
    tmp_path: Path,
) -> None:
    rows = [{"id": f"clip-{i}", "audio": f"{i}.wav", "caption": stable_hash(i, length=64)} for i in range(9)]
    file = tmp_path / "clips.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=3, compression="zstd", use_dictionary=False)
    column = parquet.read_metadata(file).row_group(1).column(2)
    data = bytearray(file.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 60 : end - 20] = b"\xff" * 40
    file.write_bytes(bytes(data))
    found = rows_of(file, Source())
    assert [isinstance(row, dict) for row in found] == [True] * 3 + [False] * 3 + [True] * 3
    assert [str(row).startswith(f"{file}: row {n}: the file is damaged here: ") for n, row in enumerate(found[3:6], 4)]


def test_a_clip_of_which_an_event_may_be_lost_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "strong.tsv").write_text(
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        "A\t0\t1\t/m/09x0r\nA\t1\nA\t2\t3\t/t/dd00088\nB\t0\t1\t/m/09x0r\n"
    )
    found = rows_of(tmp_path / "strong.tsv", Source("audioset_strong", class_labels=NAMES))
    reasons = [str(row).partition("strong.tsv: ")[2] for row in found[:3]]
    assert reasons[0] == "row 2: events: row 3, which can't be read, may be of this clip too"
    assert reasons[1].startswith("row 3: has 2 cells")
    assert reasons[2] == "row 4: events: row 3, which can't be read, may be of this clip too"
    assert found[3]["id"] == "B"


def test_parquet_with_paths_and_no_bytes_keeps_the_paths(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"id": "a", "tags": ["dog"], "audio": {"bytes": None, "path": "x/a.wav"}}]
    schema = pa.schema([("id", pa.string()), ("tags", pa.list_(pa.string())), ("audio", kind)])
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "clips.parquet")
    ((_, clip),) = read_clips(scan(tmp_path / "clips.parquet").pieces[0], recipe(Source()))
    assert clip["audio"] == f"{tmp_path}/x/a.wav"


def shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("rows_per_piece", [1, 500])
def test_shards_of_webdataset_become_clips_that_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_piece: int
) -> None:
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", rows_per_piece)
    long = "deep/" * 30  # beyond the 100 bytes of a tar header
    shard(
        tmp_path / "00000.tar",
        {
            "a/0.flac": wav(200),
            "a/0.json": b'{"tags": ["dog"], "speaker": 3}',
            "a/1.txt": b"It rains.\n",
            "a/1.WAV": wav(250),
        },
    )
    shard(tmp_path / "00001.tar", {f"{long}2.wav": wav(300), f"{long}2.json": b'{"tags": ["wind"]}'})
    rows = rows_of(tmp_path, Source("webdataset"))
    assert [row["id"] for row in rows] == ["00000/a/0", "00000/a/1", f"00001/{long}2"]
    assert (rows[0]["tags"], rows[0]["speaker"], rows[1]["caption"], rows[2]["tags"]) == (
        ["dog"], 3, "It rains.", ["wind"],
    )  # fmt: skip
    for i, row in enumerate(rows):
        assert (decode(row["audio"]) == decode(wav(200 + 50 * i))).all()
    assert len(scan(tmp_path, source=Source("webdataset")).pieces) == (3 if rows_per_piece == 1 else 2)


def test_a_sidecar_that_cannot_be_read_is_an_error_of_its_row(tmp_path: Path) -> None:
    files = {"0.wav": b"", "0.json": b"{", "1.txt": b"\xff", "2.json": b'{"tags": ["dog"]}'}
    shard(tmp_path / "x.tar", files)
    found = rows_of(tmp_path / "x.tar", Source("webdataset"))
    assert "x.tar: row 1: 0.json: not valid JSON" in str(found[0])
    assert "x.tar: row 2: 1.txt: not UTF-8 at byte 1" in str(found[1])
    source = Source("webdataset")
    *_, (_, error) = read_clips(scan(tmp_path / "x.tar", source=source).pieces[0], recipe(source))
    assert str(error).endswith("row 3: audio: missing")


@pytest.mark.parametrize(
    ("layout", "name", "content", "reason"),
    [
        ("webdataset", "x.tar", b"no tar at all", "not a tar file"),
        ("wavcaps", "x.json", b'{"clips": []}', "JSON with a list under 'data'"),
        ("wavcaps", "x.json", b"\xff", "JSON with a list under 'data'"),
        ("wavcaps", "x.json", b'{"data": 3}', "'data' should be a list"),
        ("huggingface", "x.parquet", b"", "not a Parquet file"),
        ("esc50", "x.csv", b"filename,category\n", "holds no rows"),
        ("esc50", "x.csv", b'filename,category\na,"' + b"b,c\n" * 300_000, "not readable as a table"),
        ("clotho", "x.tsv", b"file_name\n", r"end in \.csv"),
    ],
)
def test_an_input_that_makes_no_sense_is_one_line(
    tmp_path: Path, layout: Format, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        scan(tmp_path / name, source=Source(layout))
    assert str(error.value).startswith(f"input: {tmp_path}")
    assert "\n" not in str(error.value)


def test_an_unknown_store_is_one_line() -> None:
    with pytest.raises(UserError, match="input: nonsense://x: Protocol not known"):
        scan("nonsense://x")
