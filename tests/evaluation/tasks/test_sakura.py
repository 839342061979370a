from pathlib import Path
from typing import Any

import pytest
from benchmark_files import answered, json_lines, run, scored, write_csv, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import sakura

SINGLE = "Which animal is it? (a) cat (b) dog (c) cow (d) pig"
MULTI = "What does the animal have? (a) feathers (b) a mane (c) a wet nose (d) horns"


def row(file: str, **change: str) -> dict[str, str]:
    base = {"file": file, "attribute_label": "dog", "single_instruction": SINGLE, "single_answer": "(b) dog"}
    return base | {"multi_instruction": MULTI, "multi_answer": " (c) a wet nose"} | change


def write_track(root: Path, track: str, files: list[str]) -> None:
    write_csv(root / track / "metadata.csv", [row(file) for file in files])
    for file in files:
        write_recording(root / track / "audio" / file)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips of animals and one of a language, one file name in both."""
    write_track(tmp_path / "data", "Language", ["1.wav"])
    write_track(tmp_path / "data", "Animal", ["1.wav", "2.wav", "3.wav"])
    return tmp_path / "data"


REPLIES = {
    "animal/1.wav/single": "(b) dog",
    "animal/1.wav/multi": "(c)",
    "animal/2.wav/single": "The answer is (b).",
    "animal/2.wav/multi": "(a) or (c)",
    "animal/3.wav/single": "a cat",
    "animal/3.wav/multi": "a wet nose",
}


def test_figures_by_hand(data: Path) -> None:
    questions = sakura.plan(sakura.read(data), 0, tracks=["animal"])
    assert questions[0].choices == ("(a) cat", "(b) dog", "(c) cow", "(d) pig")
    assert (questions[0].reference, questions[1].reference) == ("(b) dog", "(c) a wet nose")
    assert (questions[1].split, questions[1].also) == ("animal multi", ("animal", "all multi", "all"))
    answers = answered(questions, REPLIES)
    # Of the two clips whose dog was heard, one multi-hop question was answered rightly; (a) or (c) is unparsed.
    both = {"accuracy": 100 * (4 / 6), "multi_given_single": 50, "unparsed": 100 * (1 / 6)}
    assert scored("sakura", answers) == {"strict": both}
    multi = [answer for answer in answers if answer.question.extra["hop"] == "multi"]
    assert scored("sakura", multi) == {"strict": {"accuracy": 100 * (2 / 3), "unparsed": 100 * (1 / 3)}}


def test_official_figures_are_the_judges(data: Path) -> None:
    questions = sakura.plan(sakura.read(data), 0, tracks=["animal"])
    said = ["correct", "incorrect", "correct", "correct", "incorrect", "of no use"]
    answers = [Answer(q, "?", f"Explanation: .\nJudgement: {word}") for q, word in zip(questions, said, strict=True)]
    found = scored("sakura", answers)
    assert found["official"] == {"accuracy": 50, "multi_given_single": 50, "unparsed": 100 * (1 / 6)}
    assert found["strict"]["unparsed"] == 100


def test_the_judge_is_told_question_option_and_reply(data: Path) -> None:
    question = sakura.plan(sakura.read(data), 0)[1]
    asked = sakura.judge_prompt(Answer(question, "I'd say {horns}."))
    assert f"Question: {MULTI}\nRight option: (c) a wet nose\nReply: I'd say {{horns}}.\n" in asked


def test_tracks_and_hops_are_splits(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("(b)")
    entry = run("sakura", tmp_path / "out", data, endpoint=stub.url)
    assert {split: of["n"] for split, of in entry["splits"].items()} == {
        "language single": 1,
        "language multi": 1,
        "animal single": 3,
        "animal multi": 3,
        "language": 2,
        "all single": 4,
        "all": 8,
        "all multi": 4,
        "animal": 6,
    }
    assert entry["splits"]["all single"]["strict"]["accuracy"]["value"] == 100
    assert entry["splits"]["all"]["strict"]["multi_given_single"]["n"] == 4
    assert all("official" not in of for of in entry["splits"].values())  # nobody judged
    alone = run("sakura", tmp_path / "alone", predictions=tmp_path / "out/sakura/predictions.jsonl")
    assert alone["splits"] == entry["splits"]
    one = run("sakura", tmp_path / "one", data, endpoint=stub.url, sakura={"tracks": ["language"]})
    assert one["answered"] == 2


def test_a_missing_recording_is_two_error_rows(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "Language/audio/1.wav").unlink()  # Animal has a file of this name
    entry = run("sakura", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (6, 2)
    assert {row["split"] for row in json_lines(tmp_path / "out/sakura/errors.jsonl")} == {
        "language single",
        "language multi",
    }


def test_options_end_where_the_next_begins() -> None:
    told = "Choose from (A) one, two (b) three; (c) four.\nAnswer with a letter."
    assert sakura.inline_options(told) == ["(a) one, two", "(b) three", "(c) four."]
    assert sakura.inline_options("Which animal(s)? (a) a cat (b) dog(s)") == ["(a) a cat", "(b) dog(s)"]
    assert sakura.inline_options("no options") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multi_answer": ""}, "row 2: multi_answer: empty"),
        (
            {"single_answer": "(e) fox"},
            r"row 2: single_answer: '\(e\) fox' is none of the options of single_instruction",
        ),
        ({"single_instruction": "What is it?"}, "row 2: single_answer: .* is none of the options"),
        ({"file": "1.wav"}, "row 2: file: '1.wav' stands in .*metadata.csv: row 1 already"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, str], message: str) -> None:
    write_csv(data / "Animal/metadata.csv", [row("1.wav"), row("2.wav") | change])
    with pytest.raises(UserError, match=f"Animal/metadata.csv: {message}"):
        sakura.read(data)


def test_a_missing_column_and_a_missing_track_are_named(data: Path, tmp_path: Path) -> None:
    write_csv(data / "Animal/metadata.csv", [{key: value for key, value in row("1.wav").items() if key != "file"}])
    with pytest.raises(UserError, match=r"metadata.csv: row 1: file: missing"):
        sakura.read(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folders Gender, Language, Emotion or Animal"):
        sakura.read(tmp_path / "empty")


def test_an_answer_without_a_letter_is_found_by_its_words(data: Path) -> None:
    write_csv(data / "Animal/metadata.csv", [row("1.wav", single_answer="Dog")])
    assert sakura.plan(sakura.read(data), 0, tracks=["animal"])[0].reference == "(b) dog"
