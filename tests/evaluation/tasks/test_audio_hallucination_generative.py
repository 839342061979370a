import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from benchmark_files import json_lines, run, scored, write_parquet, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.metrics import written
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import audio_hallucination_generative as generative
from balsa_ray.identity import rng

PROMPTS = [
    *("Describe the audio.", "What do you hear?", "What can be inferred from the audio?"),
    *("This is a sound of", "Generate audio caption:"),
]
TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("youtube_id", pa.string()),
        ("audiocaps_id", TEXTS),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("caption", TEXTS),
        ("label", TEXTS),
        ("hallucination_label", TEXTS),
    ]
)


def sound(frequency: int) -> bytes:
    out = io.BytesIO()
    samples = 0.5 * np.sin(2 * np.pi * frequency * np.arange(160) / 16_000)
    soundfile.write(out, samples, 16_000, format="WAV")
    return out.getvalue()


def row(name: str, labels: list[str], absent: list[str], data: bytes | None) -> dict[str, Any]:
    audio = {"bytes": data, "path": f"{name}.wav"}
    known = {"youtube_id": name, "audiocaps_id": ["1"], "audio": audio, "caption": ["A man speaks."] * 5}
    return known | {"label": labels, "hallucination_label": absent}


ROWS = [
    row("Ya", ["speech", "frying (food)"], ["bell", "jazz"], sound(300)),
    row("Yb", ["dog", "bow-wow"], ["siren", "rain"], sound(400)),
    row("Yc", ["rain"], ["speech"], None),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips, of which the last lies beside the table."""
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", ROWS, SCHEMA)
    write_recording(tmp_path / "data/audio/Yc.flac")
    return tmp_path / "data"


def descriptions(questions: list[Question], replies: dict[str, str], **judgements: str) -> list[Answer]:
    return [Answer(q, replies.get(q.id, "?"), judgements.get(q.id.replace("/", "_"))) for q in questions]


def test_strict_figures_by_hand(data: Path) -> None:
    questions = [
        q for q in generative.plan(generative.read(data), 0) if q.prompt in PROMPTS[:2] and q.clips[0]["id"] != "Yc"
    ]
    replies = {
        "Ya/1": "Speech, and a bell: speech.",  # one of two there; covers one of two
        "Ya/2": "I hear speech over frying (food).",
        "Yb/1": "A dog in the rain, and a siren, and jazz.",  # one of four there
        "Yb/2": "Something barks.",  # names no label
    }
    found = scored("audio_hallucination_generative", descriptions(questions, replies))
    assert list(found) == ["strict"]
    assert found["strict"] == pytest.approx(
        {
            "echo_i": 100 * (0.5 + 0.75) / 3,
            "echo_s": 200 / 3,
            "cover": 100 * (0.5 + 1 + 0.5) / 4,
            # By prompt: 62.5 and 0; 100 and 0; 50 and 50.
            "echo_i_std": 31.25,
            "echo_s_std": 50,
            "cover_std": 0,
            "unparsed": 25,
        }
    )


def test_judged_figures_by_hand_as_published_and_corrected(data: Path) -> None:
    questions = [q for q in generative.plan(generative.read(data), 0) if q.prompt == PROMPTS[0]]
    lists = {
        "Ya_1": "Here they are:\n- Speech\n- pan\n- bell",
        "Yb_1": "1. dog\n2. Dog.",
        "Yc_1": "none",
    }
    found = scored("audio_hallucination_generative", descriptions(questions, {}, **lists))
    # One description without objects is a -1 in the published means: (2/3 + 0 - 1) / 3 and (1 + 0 - 1) / 3.
    assert found["official"] == {"echo_i": -11.11, "echo_s": 0.0, "cover": 33.33, "unparsed": 100 * (1 / 3)}
    corrected = {"echo_i": 100 / 3, "echo_s": 50, "cover": 100 / 3, "unparsed": 100 / 3}
    assert found["corrected"] == pytest.approx(corrected)
    assert found["strict"]["unparsed"] == 100


def test_a_files_own_lists_are_scored_and_no_judge_is_asked_for_them(tmp_path: Path) -> None:
    known = {"id": "1", "audio": "a.wav", "prompt": PROMPTS[0], "response": "A dog and a car.", "reference": ["dog"]}
    (tmp_path / "p.jsonl").write_text(json.dumps(known | {"prediction": ["dog", "car"]}))
    name = "audio_hallucination_generative"
    entry = run(name, tmp_path / "out", predictions=tmp_path / "p.jsonl")
    assert {name: metric["value"] for name, metric in entry["splits"]["all"]["official"].items()} == {
        "echo_i": 50.0,
        "echo_s": 100.0,
        "cover": 100.0,
        "unparsed": 0,
    }
    assert "strict" not in entry["splits"]["all"]  # which labels there are isn't known
    (tmp_path / "p.jsonl").write_text(json.dumps(known))
    with pytest.raises(UserError, match="1: choices: missing; a list of all labels, or set data_root"):
        run(name, tmp_path / "out", predictions=tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text(json.dumps(known | {"prediction": "dog, car"}))
    with pytest.raises(UserError, match="1: prediction: should be a list of texts, is 'dog, car'"):
        run(name, tmp_path / "out", predictions=tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text(json.dumps(known | {"prediction": ["dog"], "reference": "dog"}))
    with pytest.raises(UserError, match="1: reference: should be a list of labels, is 'dog'"):
        run(name, tmp_path / "out", predictions=tmp_path / "p.jsonl")


def test_a_run_with_a_judge_and_its_predictions_scored_alone(stub: Any, data: Path, tmp_path: Path) -> None:
    asked = []

    def respond(request: dict[str, Any]) -> Any:
        content = request["messages"][0]["content"]
        if isinstance(content, str):
            asked.append(content)
            return stub.says("dog\nbicycle")
        return stub.says("A dog beside a bicycle, in the rain.")

    stub.respond = respond
    keys = {"endpoint": stub.url, "judge": {"endpoint": stub.url}}
    entry = run("audio_hallucination_generative", tmp_path / "out", data, **keys)
    assert (entry["answered"], entry["errors"]) == (15, 0)
    assert len(asked) == 1  # equal replies are judged once
    assert asked[0].endswith("\n\nA dog beside a bicycle, in the rain.")
    of = entry["splits"]["all"]
    assert of["official"]["echo_i"]["value"] == 83.33  # a half of one clip, none of two
    assert of["official"]["echo_s"]["value"] == 100
    assert of["strict"]["cover"]["value"] == 50  # dog of two, rain of one, neither of speech and frying
    assert list(entry["parsers"]) == ["official", "corrected", "strict"]
    predictions = tmp_path / "out/audio_hallucination_generative/predictions.jsonl"
    rows = json_lines(predictions)
    assert rows[0]["audio"] == f"{data}/test-00000-of-00001.parquet#row=1"
    assert rows[10]["audio"] == f"{data}/audio/Yc.flac"
    assert rows[0]["parsed"] == ["dog", "rain"]
    alone = run("audio_hallucination_generative", tmp_path / "alone", predictions=predictions)
    assert alone["splits"] == entry["splits"]
    sent = {
        json.dumps(request["messages"][0]["content"][0])
        for request in stub.requests
        if request["messages"][0]["content"][0] != "B"
    }
    assert len(sent) == 3  # each clip's own recording


def test_without_a_judge_there_are_strict_figures_alone(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "audio/Yc.flac").unlink()
    entry = run("audio_hallucination_generative", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (10, 5)
    assert list(entry["splits"]["all"]) == ["n", "clips", "strict"]
    assert "Yc" in json_lines(tmp_path / "out/audio_hallucination_generative/errors.jsonl")[0]["error"]


def reference_figures(lists: list[tuple[list[str], list[str]]]) -> tuple[float, float, float]:
    """The published scorer, from its description: scores of each description, and the means of all."""
    invented, with_one, covered = [], [], []
    for labels, objects in lists:
        true, named = set(labels), set(objects)
        common = len(named.intersection(true))
        score = -1 if len(named) == 0 else 1 - (common / len(named))
        invented.append(score)
        with_one.append(-1 if score == -1 else 0 if score == 0 else 1)
        covered.append(common / len(true))
    return tuple(round((sum(column) / len(column) * 100), 2) for column in (invented, with_one, covered))


def test_the_published_scorer_is_matched_to_its_last_printed_digit() -> None:
    draw = random.Random(0)
    words = ["dog", "Dog", "rain", "siren", "frying (food)", "", "é", "car", "bell", "speech", "motor vehicle (road)"]
    lists = [
        (draw.choices(words, k=draw.randrange(1, 11)), draw.choices(words, k=draw.randrange(8))) for _ in range(10_000)
    ]
    answers = [
        Answer(
            Question(
                str(n),
                "all",
                ({"id": str(n // 5), "audio": ""},),
                PROMPTS[n % 5],
                labels,
                extra={"prediction": objects},
            ),
            "",
        )
        for n, (labels, objects) in enumerate(lists)
    ]
    for start, end in [(0, 10_000), *((start, start + 1 + start % 283) for start in range(0, 9_600, 96))]:
        found = scored("audio_hallucination_generative", answers[start:end])["official"]
        assert (found["echo_i"], found["echo_s"], found["cover"]) == reference_figures(lists[start:end])


def test_the_deviation_is_over_prompts_and_has_an_interval(data: Path) -> None:
    questions = generative.plan(generative.read(data), 0)
    answers = descriptions(questions, {q.id: "a dog" for q in questions if q.prompt == PROMPTS[3]})
    found = written(generative.score(answers, rng(0, "x"), 200))["strict"]
    # "a dog" covers a half of one clip's labels for one prompt of five: means 0, 0, 0, 50 / 3, 0.
    assert found["cover_std"]["value"] == pytest.approx(np.std([0, 0, 0, 50 / 3, 0]))
    assert found["cover_std"]["low"] < found["cover_std"]["value"] < found["cover_std"]["high"]


def test_recordings_inside_are_not_read_with_the_table(data: Path) -> None:
    clip = generative.plan(generative.read(data), 0)[0].clips[0]
    assert clip["audio"].endswith(".parquet#row=1")
    assert (clip["tags"], clip["caption"]) == (["speech", "frying (food)"], "A man speaks.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": []}, r"row 2: label: should be a list of texts, is \[\]"),
        ({"youtube_id": "Ya"}, "row 2: youtube_id: 'Ya' stands in .*parquet: row 1 already"),
        ({"hallucination_label": None}, "row 2: hallucination_label: missing"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    write_parquet(data / "test-00000-of-00001.parquet", [ROWS[0], ROWS[1] | change], SCHEMA)
    with pytest.raises(UserError, match=message):
        generative.read(data)


def test_a_missing_column_and_a_missing_set_are_named(data: Path, tmp_path: Path) -> None:
    write_parquet(data / "test-00000-of-00001.parquet", [{"youtube_id": "Ya", "label": ["a"], "caption": ["b"]}])
    with pytest.raises(UserError, match="row 1: hallucination_label: missing"):
        generative.read(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Parquet files with youtube_id"):
        generative.read(tmp_path / "empty")
