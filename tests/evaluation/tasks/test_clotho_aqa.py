import random
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import awkward_replies, json_lines, run, scored, write_csv, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import clotho_aqa

ASKED = {
    ("rain.wav", "Is it raining?"): ["yes", "Yes", "yes"],
    ("rain.wav", "Is a bird there?"): ["yes", "no", "no"],
    ("rain.wav", "What falls?"): ["rain", "water", "rain"],
    ("dog.wav", "Is it raining?"): ["no", "no", "no"],
    ("dog.wav", "Where is it?"): ["outside", "yard", "street"],
    ("dog.wav", "Does it bark?"): ["yes", "barks", "no"],
}


def table_of(asked: dict[tuple[str, str], list[str]]) -> list[dict[str, str]]:
    """A row an annotator, those of a question apart from each other as the annotators worked."""
    return [
        {"file_name": file, "QuestionText": question, "answer": answers[person], "confidence": "yes"}
        for person in range(3)
        for (file, question), answers in asked.items()
        if person < len(answers)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        write_csv(tmp_path / f"data/clotho_aqa_{part}.csv", table_of(ASKED))
    for file in ("rain", "dog"):
        write_recording(tmp_path / f"data/audio_files/{file}.wav")
    return tmp_path / "data"


def replied(questions: list[Question], replies: dict[tuple[str, str], str]) -> list[Answer]:
    by_prompt = {(q.clips[0]["id"], q.prompt.rpartition("?")[0] + "?"): q for q in questions}
    return [Answer(by_prompt[key], reply) for key, reply in replies.items()]


REPLIES = {
    ("rain.wav", "Is it raining?"): "yes",
    ("rain.wav", "Is a bird there?"): "Yes, I hear one.",
    ("rain.wav", "What falls?"): "The water.",
    ("dog.wav", "Is it raining?"): "Yes.",
    ("dog.wav", "Where is it?"): "It is a street",
    ("dog.wav", "Does it bark?"): "no",
}


def test_three_rows_are_one_question_and_agreement_decides_its_split(data: Path) -> None:
    questions = clotho_aqa.plan(clotho_aqa.read(data), 0)
    assert [(q.clips[0]["id"], q.split, q.reference) for q in questions] == [
        ("rain.wav", "yes_no", "yes"),
        ("rain.wav", "yes_no_disputed", ["yes", "no"]),
        ("rain.wav", "single_word", ["rain", "water"]),
        ("dog.wav", "yes_no", "no"),
        ("dog.wav", "single_word", ["outside", "yard", "street"]),
        ("dog.wav", "yes_no_disputed", ["yes", "barks", "no"]),
    ]
    assert questions[0].prompt == "Is it raining? Answer yes or no."
    assert questions[2].prompt == "What falls? Answer with a single word."
    agreed = clotho_aqa.plan(clotho_aqa.read(data), 0, disputed=False)
    assert [q.id for q in agreed] == [q.id for q in questions if q.split != "yes_no_disputed"]
    train = clotho_aqa.plan(clotho_aqa.read(data), 0, part="train")
    assert {q.id for q in train}.isdisjoint(q.id for q in questions)


def test_two_annotators_agree_on_too_little(data: Path) -> None:
    write_csv(data / "clotho_aqa_test.csv", table_of({("dog.wav", "Is it raining?"): ["no", "no"]}))
    (question,) = clotho_aqa.plan(clotho_aqa.read(data), 0)
    assert question.split == "yes_no_disputed"


def test_figures_by_hand(data: Path) -> None:
    answers = replied(clotho_aqa.plan(clotho_aqa.read(data), 0), REPLIES)
    # To the letter, "yes" is what two say about the rain, and "no" one about the dog; eleven rows are yes or no.
    assert scored("clotho_aqa", answers) == {"official": {"acc_score": 100 * (3 / 18), "bi_acc_score": 100 * (3 / 11)}}
    split = {name: [a for a in answers if a.question.split == name] for name in ("yes_no", "single_word")}
    # One of two is right; both said yes, so no "no" was said: its F1 is 0, and that of "yes" 2/3.
    strict = scored("clotho_aqa", split["yes_no"])["strict"]
    assert strict["accuracy"] == 50
    assert strict["yes_rate"] == 100
    assert strict["weighted_f1"] == pytest.approx(100 / 3)
    # "Water" is what one of three said, but most said rain; a sentence can't be read, and there nobody has a majority.
    assert scored("clotho_aqa", split["single_word"])["strict"] == {
        "accuracy": 50,
        "accuracy_majority": 0,
        "unparsed": 50,
    }
    disputed = [a for a in answers if a.question.split == "yes_no_disputed"]
    # "Yes" against most, "no" where nobody has most.
    assert scored("clotho_aqa", disputed)["strict"] == {"accuracy": 100, "accuracy_majority": 0, "unparsed": 0}


def test_official_is_equality_to_the_letter(data: Path) -> None:
    """Against the public script's rule in other words: of all annotators' rows, how many are the reply?"""
    template = clotho_aqa.plan(clotho_aqa.read(data), 0)[0]
    draw = random.Random(0)
    answers, right, binary_right, rows, binary = [], 0, 0, 0, 0
    for number, reply in enumerate(awkward_replies(10_000, ["yes", "no", "Yes", "NO", "rain"])):
        people = [draw.choice(["yes", "no", "Yes", "rain", "the rain", reply.strip()]) for _ in range(3)]
        question = Question(str(number), "yes_no_disputed", template.clips, "?", people, extra={"answers": people})
        answers.append(Answer(question, reply))
        for said in people:
            same = len(said) > 0 and list(said) == list(reply.strip())
            rows, right = rows + 1, right + same
            if said.upper() in {"YES", "NO"}:
                binary, binary_right = binary + 1, binary_right + same
    found = scored("clotho_aqa", answers)["official"]
    assert found == {"acc_score": 100 * (right / rows), "bi_acc_score": 100 * (binary_right / binary)}
    assert 0 < binary_right < right < rows


def test_a_run_and_its_predictions_score_alike(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("yes")
    entry = run("clotho_aqa", tmp_path / "out", data, endpoint=stub.url)
    assert {split: of["n"] for split, of in entry["splits"].items()} == {
        "yes_no": 2,
        "yes_no_disputed": 2,
        "single_word": 2,
        "all": 6,
    }
    assert entry["splits"]["all"]["official"]["acc_score"]["n"] == 18
    assert "strict" not in entry["splits"]["all"]
    alone = run("clotho_aqa", tmp_path / "alone", predictions=tmp_path / "out/clotho_aqa/predictions.jsonl")
    assert alone["splits"] == entry["splits"]
    fewer = run("clotho_aqa", tmp_path / "fewer", data, endpoint=stub.url, clotho_aqa={"disputed": False})
    assert {split: of["n"] for split, of in fewer["splits"].items()} == {"yes_no": 2, "single_word": 2, "all": 4}


def test_a_missing_recording_is_an_error_row_a_question(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "audio_files/dog.wav").unlink()
    entry = run("clotho_aqa", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (3, 3)
    assert "dog.wav" in json_lines(tmp_path / "out/clotho_aqa/errors.jsonl")[0]["error"]


def test_what_is_not_as_published_is_named(data: Path, tmp_path: Path) -> None:
    write_csv(data / "clotho_aqa_test.csv", [{"file_name": "dog.wav", "QuestionText": " ", "answer": "no"}])
    with pytest.raises(UserError, match=r"clotho_aqa_test.csv: row 1: QuestionText: empty"):
        clotho_aqa.read(data)
    write_csv(data / "clotho_aqa_test.csv", [{"file_name": "dog.wav", "QuestionText": "?"}])
    with pytest.raises(UserError, match=r"clotho_aqa_test.csv: row 1: answer: missing"):
        clotho_aqa.read(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no clotho_aqa_test.csv there"):
        clotho_aqa.read(tmp_path / "empty")
    question = Question("q", "single_word", ({"id": "a", "audio": "a"},), "?", "rain")
    with pytest.raises(UserError, match="q: answers: missing"):
        clotho_aqa.correct(Answer(question, "rain"), "rain")


def test_an_empty_answer_is_nobodys_word(data: Path) -> None:
    write_csv(data / "clotho_aqa_test.csv", table_of({("dog.wav", "Where?"): ["", "yard", ""]}))
    (question,) = clotho_aqa.plan(clotho_aqa.read(data), 0)
    found = scored("clotho_aqa", [Answer(question, "")])
    assert found["official"]["acc_score"] == found["strict"]["accuracy"] == 0
