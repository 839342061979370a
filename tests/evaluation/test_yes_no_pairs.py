"""The three sets of pairs, by one of them where they are alike."""

import random
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import (
    answered,
    awkward_answers,
    json_lines,
    published_yes_no,
    run,
    scored,
    write_csv,
    write_parquet,
    write_recording,
)

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import rng

SETS = ("object_existence", "temporal_order", "object_attribute")
FOLDER = "Audio-Hallucination_Temporal-Order_CompA-Order"


def pair(number: int, first: str, second: str, query: str = "Is it so?") -> list[dict[str, Any]]:
    """Two rows, about a recording in which it is so and one in which it isn't."""
    return [
        {"entry_id": 2 * number + place, "audio": audio, "query": query, "attribute": kind, "ground_truth": truth}
        for place, (audio, kind, truth) in enumerate([(first, "positive", "yes"), (second, "negative", "No")])
    ]


ROWS = [
    row for n in range(3) for row in pair(n, f"CompA_order_files/{2 * n}.wav", f"CompA_order_files/{2 * n + 1}.wav")
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """All three sets below one folder, one with another file name and a column more; two number their files alike."""
    root = tmp_path / "data"
    write_parquet(root / FOLDER / "data/test-00000-of-00001-1.parquet", ROWS)
    attribute = [row | {"audio": row["audio"].replace("order", "attribute")} for row in ROWS[:2]]
    write_parquet(
        root / "Audio-Hallucination_Object-Attribute_CompA-Attribute/test-00000-of-00001-2.parquet", attribute
    )
    existence = [row | {"query": "Is there a sound of a dog in the audio?"} for row in pair(0, "with@1.wav", "y.wav")]
    write_csv(root / "object_existence.csv", existence)
    for number in range(6):
        write_recording(root / f"CompA/CompA_order_files/{number}.wav")
    for name in ("CompA/CompA_attribute_files/0.wav", "CompA/CompA_attribute_files/1.wav", "beaf_audio/with@1.wav"):
        write_recording(root / name)
    return root


REPLIES = {
    "0": "Yes.",
    "1": "No.",
    "2": "Yes.",
    "3": "I can see eyes",  # a yes for the published parser
    "4": "no",  # unknown for it
    "5": "No.",
}


def test_figures_by_hand(data: Path) -> None:
    task = TASKS["temporal_order"]
    found = scored("temporal_order", answered(task.plan(task.read(data), 0), REPLIES))
    assert found["official"] == {
        "accuracy": 66.67,
        "precision": 100.0,  # of two that were read as no
        "recall": 66.67,  # of three that are no
        "f1_score": 80.0,
        "yes_rate": 50.0,
        "instruction_follow_rate": 83.33,
        "correct_correct": 50.0,  # of two pairs: the third has an unknown
        "incorrect_incorrect": 0.0,
        "correct_incorrect": 50.0,
        "incorrect_correct": 0.0,
        "unparsed": 100 * (1 / 6),
    }
    # Strict: the bare no is read, and "eyes" is not: of three pairs one of each kind that is left.
    assert {name: found["strict"][name] for name in ("accuracy", "unparsed", "broken_pairs")} == {
        "accuracy": 100 * (4 / 6),
        "unparsed": 100 * (1 / 6),
        "broken_pairs": 0,
    }
    third = 100 * (1 / 3)
    assert [found["strict"][name] for name in ("correct_correct", "correct_incorrect", "incorrect_correct")] == [
        third
    ] * 3


def test_a_pair_with_a_missing_answer_is_counted_and_no_other_takes_its_place(data: Path) -> None:
    task = TASKS["temporal_order"]
    answers = answered(task.plan(task.read(data), 0), REPLIES)
    del answers[0]  # in the published scorer all rows below would change their places
    found = scored("temporal_order", answers)
    assert found["strict"]["broken_pairs"] == 100 * (1 / 3)
    assert found["strict"]["correct_incorrect"] == 50
    assert (found["official"]["correct_incorrect"], found["official"]["correct_correct"]) == (100, 0)
    assert scored("temporal_order", answers[::-1]) == found
    metrics = task.score(answers, rng(0, "x"), 5)
    assert (metrics["official"]["correct_correct"]["n"], metrics["strict"]["broken_pairs"]["n"]) == (1, 3)
    alone = scored("temporal_order", answers[:1])
    assert alone["strict"]["broken_pairs"] == 100
    assert "correct_correct" not in alone["strict"]
    assert "correct_correct" not in alone["official"]


def test_rows_that_are_no_pair_are_in_none_of_the_four_figures(data: Path) -> None:
    task = TASKS["temporal_order"]
    rows = task.read(data)
    rows[0], rows[1] = rows[1] | {"index": 0}, rows[0] | {"index": 1}  # no, then yes
    found = scored("temporal_order", answered(task.plan(rows, 0), REPLIES))
    assert found["strict"]["broken_pairs"] == 100 * (1 / 3)
    assert found["official"]["correct_incorrect"] == 100


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_found_and_its_predictions_are_scored_alone(
    stub: Any, data: Path, tmp_path: Path, name: str
) -> None:
    stub.respond = lambda request: stub.says("No.")
    entry = run(name, tmp_path / "out", data, endpoint=stub.url)
    expected = {"object_existence": (1, 1), "temporal_order": (6, 0), "object_attribute": (2, 0)}
    assert (entry["answered"], entry["errors"]) == expected[name]  # y.wav of the first is missing
    predictions = json_lines(tmp_path / f"out/{name}/predictions.jsonl")
    assert [row["index"] for row in predictions] == list(range(entry["answered"]))
    folder = {"object_existence": "beaf_audio", "temporal_order": "order", "object_attribute": "attribute"}[name]
    assert all(folder in row["audio"] for row in predictions)
    alone = run(name, tmp_path / "alone", predictions=tmp_path / f"out/{name}/predictions.jsonl")
    assert alone["splits"] == entry["splits"]
    if name == "object_existence":
        assert predictions[0]["object"] == "a dog"
        assert entry["splits"]["all"]["strict"]["broken_pairs"]["value"] == 100
        assert "y.wav" in json_lines(tmp_path / f"out/{name}/errors.jsonl")[0]["error"]


def reference_figures(rows: list[tuple[str, str]]) -> dict[str, float]:
    """The published scorer, from its description, row by row: kinds of answers, and pairs of an even and an odd row."""
    kinds = []
    unknown = said_yes = 0
    for label, reply in rows:
        said = published_yes_no(reply)
        unknown += not said
        said_yes += said == "yes"
        kinds.append({"yes": {"yes": "TP", "no": "FN"}, "no": {"yes": "FP", "no": "TN"}}[label].get(said, "unknown"))
    count = {kind: kinds.count(kind) for kind in ("TP", "TN", "FP", "FN")}
    precision = count["TN"] / (count["TN"] + count["FN"])
    recall = count["TN"] / (count["TN"] + count["FP"])
    pairs = [a + b for a, b in zip(kinds[::2], kinds[1::2], strict=False) if a in ("TP", "FN") and b in ("TN", "FP")]
    names = {"correct_correct": "TPTN", "incorrect_incorrect": "FNFP"}
    names |= {"correct_incorrect": "TPFP", "incorrect_correct": "FNTN"}
    return {
        "accuracy": round(((count["TP"] + count["TN"]) / len(rows)) * 100, 2),
        "precision": round(precision * 100, 2),
        "recall": round(recall * 100, 2),
        "f1_score": round(2 * (precision * recall) / (precision + recall) * 100, 2),
        "yes_rate": round(100 * (said_yes / len(rows)), 2),
        "instruction_follow_rate": round(100 * ((len(rows) - unknown) / len(rows)), 2),
        **{name: round(100 * (pairs.count(kind) / len(pairs)), 2) for name, kind in names.items()},
    }


def test_the_published_scorer_is_matched_to_its_last_printed_digit() -> None:
    draw = random.Random(0)
    rows = [
        ("no" if number % 2 and draw.random() < 0.98 else "yes", reply)  # some rows are no pairs
        for number, reply in enumerate(awkward_answers(10_000, ["before", "after"]))
    ]
    for start, end in [(0, 10_000), *((start, start + 40 + start % 283) for start in range(0, 9_600, 96))]:
        answers = [
            Answer(Question(str(number), "all", ({"id": str(number // 5), "audio": ""},), "?", label), reply)
            for number, (label, reply) in enumerate(rows[start:end])
        ]
        found = scored("object_attribute", answers)["official"]
        assert {name: found[name] for name in found if name != "unparsed"} == reference_figures(rows[start:end])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ground_truth": "maybe"}, "row 2: ground_truth: should be yes or no, is 'maybe'"),
        ({"entry_id": 0}, "row 2: entry_id: 0 stands in row 1 already"),
        ({"query": ""}, "row 2: query: empty"),
        ({"audio": None}, "row 2: audio: missing"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    write_parquet(data / FOLDER / "data/test-00000-of-00001-1.parquet", [ROWS[0], ROWS[1] | change])
    with pytest.raises(UserError, match=f"test-00000-of-00001-1.parquet: {message}"):
        TASKS["temporal_order"].read(data)


def test_a_missing_column_and_a_wrong_type_are_named(data: Path) -> None:
    table = data / "object_existence.csv"
    write_csv(table, [{key: value for key, value in ROWS[0].items() if key != "attribute"}])
    with pytest.raises(UserError, match=r"object_existence\.csv: row 1: attribute: missing"):
        TASKS["object_existence"].read(data)
    write_parquet(data / "object_existence.parquet", [ROWS[0] | {"query": 3}])
    with pytest.raises(UserError, match="row 1: query: should be text, is 3"):
        TASKS["object_existence"].read(data / "object_existence.parquet")


def test_another_sets_table_is_never_taken_and_two_are_asked_about(data: Path) -> None:
    with pytest.raises(UserError, match=r"no Parquet or CSV file .* of object_existence"):
        TASKS["object_existence"].read(data / "CompA")
    (data / "object_existence.csv").unlink()
    with pytest.raises(UserError, match=r"no Parquet or CSV file .* of object_existence"):
        TASKS["object_existence"].read(data)
    write_csv(data / FOLDER / "again.csv", ROWS)
    with pytest.raises(UserError, match=r"which of .*again\.csv, .*parquet is temporal_order\? Name the file itself"):
        TASKS["temporal_order"].read(data)
    assert len(TASKS["temporal_order"].read(data / FOLDER / "again.csv")) == 6
    assert len(TASKS["temporal_order"].read(data / FOLDER / "data")) == 6  # alone in its folder, under any name


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, None], "index: should be the row's place in the set, from 0, is None"), ([1, 1], "index: 1 stands twice")],
)
def test_places_that_can_not_be_are_refused(indices: list[Any], message: str) -> None:
    answers = [
        Answer(Question(str(n), "all", ({"id": "a", "audio": "a"},), "?", "yes", extra={"index": index}), "yes")
        for n, index in enumerate(indices)
    ]
    with pytest.raises(UserError, match=message):
        TASKS["object_existence"].score(answers, rng(0, "x"), 2)
