from pathlib import Path
from typing import Any

import pytest
from benchmark_files import answered, awkward_replies, json_lines, run, scored, write_json, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import mmau

VERSION = {"mmau": {"version": "v05.15.25"}}


def row(
    name: str, task: str, difficulty: str, choices: list[str], answer: str, sub: str = "Counting"
) -> dict[str, Any]:
    return {
        "id": name,
        "audio_id": f"./test-mini-audios/{name}.wav",
        "question": "Who speaks?",
        "choices": choices,
        "answer": answer,
        "dataset": "AudioSet",
        "task": task,
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": sub,
        "difficulty": difficulty,
    }


ROWS = [
    row("u1", "sound", "easy", ["Man", "Woman", "Child"], "Man", sub="Source"),
    row("u2", "sound", "medium", ["A child", "A woman", "An adult man"], "A child "),
    row("u3", "music", "easy", ["Radio", "Live band"], "Live band"),
    row("u4", "speech", "hard", ["two", "three"], "two"),
]
REPLIES = {
    "u1": "(a) Man",  # no other option has the word "a"
    "u2": "(a)",  # the matcher misses the word "child"
    "u3": "The live band, not a radio.",  # "radio" is a word of another option
    "u4": "",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_json(root / "mmau-test-mini.json", ROWS)
    for name in ("u1", "u2", "u3", "u4"):
        write_recording(root / f"test-mini-audios/{name}.wav")
    return root


def test_figures_by_hand(data: Path) -> None:
    questions = mmau.plan(mmau.read(data), 0, version="v05.15.25")
    assert [(q.split, q.also) for q in questions][:2] == [("sound", ("all", "easy")), ("sound", ("all", "medium"))]
    found = scored("mmau", answered(questions, REPLIES))
    assert found["official"] == {"accuracy": 25, "unparsed": 25}
    assert found["strict"] == {"accuracy": 75, "unparsed": 25}  # not "a radio"
    assert questions[1].reference == "A child"  # as it stands among the choices


def test_all_tasks_and_difficulties_are_splits(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("man")
    entry = run("mmau", tmp_path / "out", data, endpoint=stub.url, **VERSION)
    assert {split: of["n"] for split, of in entry["splits"].items()} == {
        "sound": 2,
        "music": 1,
        "speech": 1,
        "all": 4,
        "easy": 2,
        "medium": 1,
        "hard": 1,
    }
    assert entry["splits"]["sound"]["official"]["accuracy"]["value"] == 50
    assert entry["splits"]["easy"]["official"]["accuracy"]["value"] == 50
    assert entry["splits"]["all"]["strict"]["accuracy"]["value"] == 25
    assert entry["settings"]["version"] == "v05.15.25"
    # A predictions file is scored alone, splits included.
    alone = run("mmau", tmp_path / "alone", predictions=tmp_path / "out/mmau/predictions.jsonl", **VERSION)
    assert alone["splits"] == entry["splits"]
    finer = {"mmau": {"version": "original", "sub_categories": True}}
    assert "sub-category Source" in run("mmau", tmp_path / "finer", data, endpoint=stub.url, **finer)["splits"]


def test_the_version_has_to_be_said() -> None:
    given = {"output": "out", "tasks": ["mmau"], "data_root": "data", "endpoint": "http://x"}
    with pytest.raises(ValueError, match=r"mmau.version: missing; say which release"):
        BenchmarkConfig.model_validate(given)


def test_options_are_listed_without_letters(data: Path) -> None:
    assert mmau.plan(mmau.read(data), 0)[2].prompt == (
        "Who speaks?\nReply with one of these options:\n- Radio\n- Live band"
    )


def test_desta_is_asked_and_read_as_its_authors_do(stub: Any, data: Path, tmp_path: Path) -> None:
    # "is" is a word of a wrong option: with the prefix the matcher would miss the right reply.
    write_json(data / "mmau-test-mini.json", [row("u1", "sound", "easy", ["It is rain", "Wind", "Snow"], "Wind")])
    stub.respond = lambda request: stub.says('The correct answer is: "Wind" ')
    settings = {"mmau": {"version": "v05.15.25", "prompt": "desta2.5"}}
    entry = run("mmau", tmp_path / "out", data, endpoint=stub.url, **settings)
    system, user = stub.requests[0]["messages"]
    assert system["content"].endswith('Put your answer in the format "The correct answer is: "___" ".')
    assert user["content"][-1]["text"] == (
        'Who speaks? Choose from the following options: "It is rain", "Wind" or "Snow"'
    )
    alone = run("mmau", tmp_path / "alone", predictions=tmp_path / "out/mmau/predictions.jsonl", **settings)
    for scores in (entry, alone):
        assert scores["splits"]["all"]["official"]["accuracy"]["value"] == 100
        assert scores["splits"]["all"]["strict"]["accuracy"]["value"] == 100
    plain = [Answer(q, 'The correct answer is: "Wind" ') for q in mmau.plan(mmau.read(data), 0)]
    assert scored("mmau", plain)["official"]["accuracy"] == 0


def test_a_missing_recording_is_an_error_row(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "test-mini-audios/u3.wav").unlink()
    entry = run("mmau", tmp_path / "out", data, endpoint=stub.url, **VERSION)
    assert (entry["answered"], entry["errors"]) == (3, 1)
    assert "u3.wav" in json_lines(tmp_path / "out/mmau/errors.jsonl")[0]["error"]


def reference_words(text: str) -> set[str]:
    spaced = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower())
    return set(spaced.split())


def reference_match(answer: str, reply: str, choices: list[str]) -> bool:
    """The published matcher, word by word."""
    said, right = reference_words(reply), reference_words(answer)
    if not said:
        return False
    forbidden = set()
    for choice in choices:
        if reference_words(choice) != right:
            forbidden |= {word for word in reference_words(choice) if word not in right}
    return all(word in said for word in right) and not any(word in said for word in forbidden)


def test_the_published_matcher_is_matched_to_its_last_digit() -> None:
    sets = [["Man", "man.", "A dog", "b"], ["A child", "The child", "It's the ² İ", "犬 ß"], ["(A) None", "(B) an"]]
    words = [word for choices in sets for choice in choices for word in choice.split()]
    answers, right = [], 0
    for number, reply in enumerate(awkward_replies(10_000, words)):
        choices = sets[number % 3]
        answer = choices[number % len(choices)]
        question = Question(str(number), "all", ({"id": str(number), "audio": ""},), "", answer, choices=tuple(choices))
        answers.append(Answer(question, reply))
        right += reference_match(answer, reply, choices)
    assert 100 < right < 5000
    assert f"{scored('mmau', answers)['official']['accuracy']:.2f}" == f"{100 * right / len(answers):.2f}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "row 2: choices: missing"),
        ({"choices": "Man"}, "row 2: choices: should be a list of texts"),
        ({"answer": 1}, "row 2: answer: should be text"),
        ({"task": "noise"}, "row 2: task: must be one of sound, music, speech, not 'noise'"),
        ({"difficulty": "simple"}, "row 2: difficulty: must be one of easy, medium, hard"),
        ({"id": "u1"}, "row 2: id: 'u1' stands in row 1 already"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    changed = {key: value for key, value in (ROWS[1] | change).items() if value is not None}
    write_json(data / "mmau-test-mini.json", [ROWS[0], changed])
    with pytest.raises(UserError, match=f"mmau-test-mini.json: {message}"):
        mmau.read(data)


def test_two_versions_in_one_folder_are_not_mixed(data: Path) -> None:
    write_json(data / "old/mmau-test-mini.json", ROWS)
    with pytest.raises(UserError, match="which of"):
        mmau.read(data)
    assert len(mmau.read(data / "old/mmau-test-mini.json")) == 4
