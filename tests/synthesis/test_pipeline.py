import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny_models import TinyCheckpoints

from balsa_ray.config import UserError
from balsa_ray.prompts.render import BEGIN, END
from balsa_ray.schema import ERROR, SAMPLE
from balsa_ray.synthesis import manifest, pairing
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.manifest import scan
from balsa_ray.synthesis.pipeline import source_of, synthesize
from balsa_ray.synthesis.plan import Recipe
from balsa_ray.synthesis.plan_tasks import planned
from balsa_ray.synthesis.recipe import Writer, identity, recipe_of
from balsa_ray.synthesis.replies import finish
from balsa_ray.synthesis.survey import survey

LABELS = ("rain", "wind", "siren", "dog barking")
KINDS = {"present": 1, "absent": 1, "combined": 0.5, "difference": 1, "joint": 0.5}
RECIPE = Recipe("recipe", 0, "tags", KINDS, LABELS)
LIGHT = {"num_cpus": 0.5}


def row(i: int) -> dict[str, Any]:
    tags = [LABELS[i % 4], LABELS[(i // 4) % 4]] if i % 4 != (i // 4) % 4 else [LABELS[i % 4]]
    return {"id": f"clip-{i}", "audio": f"audio/{i}.wav", "tags": tags, "weather": i if i % 2 else "odd"}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in rows), "utf-8")
    return path


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]


@pytest.mark.slow
def test_a_run_accounts_for_every_row_and_is_made_once(
    ray_session: None, tiny_checkpoints: TinyCheckpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"id": "long", "audio": "long.wav", "tags": [f"label number {i}" for i in range(200)]}
    rows = [
        *map(row, range(8)),
        "{not json\n",
        *map(row, range(8, 20)),
        row(3),
        {"id": "bad", "audio": "x.wav", "tags": 3},
        long,
    ]
    config = SynthesizeConfig(
        output=tmp_path / "out",
        input=write(tmp_path / "clips.jsonl", rows),
        audio_check="none",
        model=tiny_checkpoints.text,
        kinds={"present": 1, "absent": 0.5, "difference": 1},
        sampling={"max_tokens": 12},
        engine={"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16},
    )
    report = synthesize(config)

    made, rejected, errors = (rows_in(tmp_path / "out" / name) for name in ("samples", "rejected", "errors"))
    ids = [row["id"] for row in (*made, *rejected, *errors)]
    assert len(ids) == len(set(ids)) == report["planned"]
    assert (len(made), len(rejected)) == (report["samples"], report["rejected"])
    bad = sorted(row["error"] for row in errors if not row["kind"])
    assert [reason.split(": ")[1:3] for reason in bad] == [
        ["row 22", "id"],
        ["row 23", "tags"],
        ["row 9", "not valid JSON"],
    ]
    assert report["unusable"] == bad
    failed = [row for row in errors if row["kind"]]
    assert failed
    assert all("long" in row["clip_ids"] for row in failed)
    assert report["errors"] == {"manifest": 3, "engine": len(failed)}
    assert {row["kind"] for row in (*made, *rejected)} == {"present", "absent", "difference"}
    for sample in (*made, *rejected):
        assert sample["audio"] == [
            str(tmp_path / f"audio/{name.removeprefix('clip-')}.wav") for name in sample["clip_ids"]
        ]
        assert sample["provenance"]["recipe"] == report["identity"]["recipe"]
        numbers = [int(name.removeprefix("clip-")) for name in sample["clip_ids"]]
        assert sample["source_weather"] == [str(i) if i % 2 else "odd" for i in numbers]
        assert sample["gate"] in report["by_kind"][sample["kind"]]
        assert 0 < sample["response_tokens"] <= 12
        assert (sample["gate"] == "truncated") <= (sample["finish_reason"] == "length")
    assert sum(sample["response_tokens"] for sample in (*made, *rejected)) == report["tokens"]["response"]
    assert "the same command retries" in capsys.readouterr().out
    assert [(stage["stage"], stage["rows"]) for stage in report["stages"]] == [
        ("planning", len(ids) - 3), ("requests (chat template, tokens)", len(ids) - 3), ("replies", len(ids) - 3),
        ("gates and writing", len(ids) - 3),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.jsonl", "out"]


def test_the_plan_is_the_same_whatever_the_blocks_and_the_workers(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "LINES_PER_PIECE", 9)
    source = scan(write(tmp_path / "clips.jsonl", [row(i) for i in range(60)]))
    plans = []
    for light in ({"num_cpus": 1}, {"num_cpus": 0.25}):
        blocks = planned(source, RECIPE, light).repartition(target_num_rows_per_block=len(plans) + 10)
        plans.append(sorted(row["planned"] for row in blocks.take_all()))
        assert len({json.loads(row)["id"] for row in plans[-1]}) == len(plans[-1]) > 60 * 3
    assert plans[0] == plans[1]


def test_the_survey_counts_what_is_planned(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(manifest, "LINES_PER_PIECE", 6)
    monkeypatch.setattr(pairing, "CLIPS_PER_POOL", 12)
    source = scan(write(tmp_path / "clips.jsonl", [*map(row, range(19)), {"id": "no audio"}]))
    pieces = ray.data.from_items([asdict(piece) for piece in source.pieces])
    found = survey(pieces, source, RECIPE, tmp_path, LIGHT)
    assert (found.clips, found.bad_rows, found.labels) == (19, 1, tuple(sorted(LABELS)))
    assert (found.columns, found.first_error) == (
        ("source_weather",),
        f"{tmp_path}/clips.jsonl: row 20: audio: missing",
    )
    assert found.planned == planned(source, RECIPE, LIGHT).count()
    (bad,) = rows_in(tmp_path)
    assert bad["error"].endswith("clips.jsonl: row 20: audio: missing")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"id": "a"}, "nonsense\n"], r"none of the 2 rows can be used: .*row 1: audio: missing"),
        (["\n"], "all are blank"),
    ],
)
def test_a_manifest_of_which_nothing_can_be_made_is_refused(
    ray_session: None, tmp_path: Path, rows: list[Any], reason: str
) -> None:
    import ray

    source = scan(write(tmp_path / "clips.jsonl", rows))
    pieces = ray.data.from_items([asdict(piece) for piece in source.pieces])
    with pytest.raises(UserError, match=reason):
        survey(pieces, source, RECIPE, tmp_path / "errors", LIGHT)


def test_replies_are_judged_and_written_where_they_belong(tmp_path: Path) -> None:
    sample = {
        "kind": "combined",
        "clip_ids": ["a"],
        "audio": ["/a.wav"],
        "metadata": ["rain"],
        "prompt_id": "combined-1",
        "prompt": "?",
        "present": ["rain"],
        "strategy": "free",
        "candidates": [],
    }
    replies = {
        "good": (" I hear rain, but no siren.", "stop", ""),
        "wrong": ("I hear wind, but no rain.", "stop", ""),
        "cut": ("I hear rain, but", "length", ""),
        "failed": ("", "length", "ValueError: too long"),
    }
    batch = pa.Table.from_pylist(
        [
            {
                "row": json.dumps({"planned": json.dumps(sample | {"id": name})}),
                "response": response,
                "prompt_tokens": 7,
                "response_tokens": 5,
                "finish_reason": finish,
                "error": error,
            }
            for name, (response, finish, error) in replies.items()
        ]
    )
    origin = {
        "recipe": "r",
        "model": "m",
        "model_hash": "h",
        "template_hash": "t",
        "sampling": "{}",
        "seed": 0,
        "packages": "{}",
    }
    counts = finish(RECIPE, (BEGIN, END), origin, tmp_path, batch).to_pydict()

    (good,) = rows_in(tmp_path / "samples")
    assert (good["response"], good["present"], good["absent"]) == ("I hear rain, but no siren.", ["rain"], ["siren"])
    assert good["provenance"] == origin
    assert {row["id"]: row["gate"] for row in rows_in(tmp_path / "rejected")} == {
        "wrong": "denies_present",
        "cut": "truncated",
    }
    (failed,) = rows_in(tmp_path / "errors")
    assert (failed["id"], failed["error"]) == ("failed", "ValueError: too long")
    for name, schema in (("samples", SAMPLE), ("rejected", SAMPLE), ("errors", ERROR)):
        assert all(parquet.read_schema(file).equals(schema) for file in (tmp_path / name).iterdir())
    assert good["strategy"] == "free"
    assert set(counts["strategy"]) == {"free"}
    ways = dict(zip(counts["gate"], counts["rows"], strict=True))
    assert ways == {"passed": 1, "denies_present": 1, "truncated": 1, "error": 1}
    assert sum(counts["response_tokens"]) == 15


def test_labels_by_id_need_their_names(tmp_path: Path) -> None:
    names = write(tmp_path / "class_labels_indices.csv", ["index,mid,display_name\n", '0,/m/09x0r,"Speech"\n'])
    base = {"output": tmp_path / "out", "input": "x.csv", "model": "m", "input_format": "audioset"}
    with pytest.raises(UserError, match=r"class_labels: missing; input_format=audioset gives labels by id"):
        source_of(SynthesizeConfig.model_validate(base))
    source = source_of(SynthesizeConfig.model_validate(base | {"class_labels": str(names)}))
    assert (source.class_labels, source.audio_check) == ({"/m/09x0r": "Speech"}, "header")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"columns": {"captions": "c"}}, "captions is no field of the manifest; did you mean 'caption'"),
        ({"kinds": {"joint": 1}, "prompts": "prompts.yaml"}, r"kinds.joint: no prompt .* set kinds.joint=0"),
        ({"prompts": "misspelt.yaml"}, "entry 1 .p.: txt: Extra inputs are not permitted; known: id, kind, clips"),
        ({"prompts": "other.yaml"}, "kind: should be 'present', .*, not 'presnt'"),
        ({"output": "clips.jsonl/out"}, "output: .*clips.jsonl/out: can't be made: Not a directory"),
    ],
)
def test_a_mistake_is_one_line_with_its_cure(
    ray_session: None, tiny_checkpoints: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "clips.jsonl", [row(0)])
    write(tmp_path / "prompts.yaml", ["- {id: p, kind: present, clips: 1, text: What}\n"])
    write(tmp_path / "misspelt.yaml", ["- {id: p, kind: present, clips: 1, txt: What}\n"])
    write(tmp_path / "other.yaml", ["- {id: p, kind: presnt, clips: 1, text: What}\n"])
    base = {"output": tmp_path / "out", "input": "clips.jsonl", "audio_check": "none", "model": tiny_checkpoints.text}
    with pytest.raises(ValueError, match=reason):
        synthesize(SynthesizeConfig.model_validate({**base, **change}))


@pytest.mark.parametrize("name", ["s3://bucket/clips", "clips.jsonl", ["a.tar", "b.tar"]])
def test_an_input_stays_as_it_is_written(name: str | list[str]) -> None:
    config = SynthesizeConfig.model_validate_json(json.dumps({"output": "o", "input": name, "model": "m"}), strict=True)
    assert config.input == name


def test_what_decides_the_rows_is_part_of_the_identity(tmp_path: Path) -> None:
    names = write(tmp_path / "names.csv", ["index,mid,display_name\n", '0,/m/09x0r,"Speech"\n'])
    base = {"output": tmp_path / "out", "input": write(tmp_path / "clips.jsonl", [row(0)]), "model": "m"}
    changes: list[dict[str, Any]] = [
        {"input_format": "huggingface"},
        {"columns": {"tags": "labels"}},
        {"class_labels": str(names)},
        {"audio_check": "full"},
        {"max_audio_seconds": 10.0},
        {"audio_root": "/elsewhere"},
    ]
    scanned = scan(tmp_path / "clips.jsonl")

    def known(**change: Any) -> dict[str, Any]:
        config = SynthesizeConfig.model_validate(base | change)
        return identity(config, recipe_of(config), Writer("m", "weights", "tokenizer"), scanned)

    plain = known()
    assert plain["audio_root"] == str(tmp_path)
    for change in changes:
        other = known(**change)
        assert {key for key in plain if plain[key] != other[key]} == set(change)
