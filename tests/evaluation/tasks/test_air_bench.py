from pathlib import Path
from typing import Any

import pytest
from benchmark_files import answered, awkward_replies, json_lines, run, scored, write_json, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import air_bench


def row(number: int, task: str, dataset: str, choices: list[str], right: str) -> dict[str, Any]:
    letters = dict(zip(("choice_a", "choice_b", "choice_c", "choice_d"), choices, strict=False))
    named = {"path": f"{number}.wav", "task_name": task, "dataset_name": dataset, "question": "What is it?"}
    return named | letters | {"answer_gt": right, "uniq_id": number}


ROWS = [
    row(0, "Sound_AQA", "clothoaqa", ["yes", "no"], "yes"),
    row(1, "Sound_AQA", "clothoaqa", ["yes", "no"], "no"),
    row(2, "Sound_AQA", "avqa", ["car", "dog", "bird", "rain"], "rain"),
    row(3, "Audio_Grounding", "AudioGrounding", ["[0, 1]", "[1, 2]", "[2, 3]", "[3, 4]"], "[1, 2]"),
]
REPLIES = {
    "Sound_AQA/clothoaqa/0": "An owl",  # an A for the published scorer
    "Sound_AQA/clothoaqa/1": "no, there is none",  # neither at the first place nor at the last but one
    "Sound_AQA/avqa/2": "The answer is D.",
    "Audio_Grounding/AudioGrounding/3": "(c)",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions of two tasks, one with two data sets, whose recordings have the same names."""
    root = tmp_path / "data/Foundation"
    write_json(root / "Foundation_meta.json", ROWS)
    for name in ("Sound_AQA_clothoaqa/0.wav", "Sound_AQA_clothoaqa/1.wav", "Sound_AQA_avqa/2.wav", "Other/0.wav"):
        write_recording(root / name)
    write_recording(root / "Audio_Grounding_AudioGrounding/3.flac")
    return tmp_path / "data"


def test_figures_by_hand(data: Path) -> None:
    questions = air_bench.plan(air_bench.read(data), 0)
    found = scored("air_bench", answered(questions, REPLIES))
    assert found["official"] == {"accuracy": 100, "unparsed": 50}  # two letters were found, both are right
    assert found["strict"] == {"accuracy": 50, "unparsed": 25}  # "no", and D; "An owl" says nothing


def test_the_prompt_is_the_published_one_with_its_missing_options(data: Path) -> None:
    asked = air_bench.plan(air_bench.read(data), 0)[0].prompt
    assert asked.endswith("you may only choose A or B or C or D.\nWhat is it?\nA. yes\nB. no\nC. None\nD. None")


def test_tasks_and_data_sets_are_splits(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("B")
    entry = run("air_bench", tmp_path / "out", data, endpoint=stub.url)
    assert {split: of["n"] for split, of in entry["splits"].items()} == {
        "Sound_AQA": 3,
        "Audio_Grounding": 1,
        "all": 4,
        "Sound_AQA_clothoaqa": 2,
        "Sound_AQA_avqa": 1,
    }
    assert entry["splits"]["Sound_AQA_clothoaqa"]["official"]["accuracy"]["value"] == 50
    grounding = json_lines(tmp_path / "out/air_bench/predictions.jsonl")[3]
    assert grounding["audio"].endswith("Audio_Grounding_AudioGrounding/3.flac")
    alone = run("air_bench", tmp_path / "alone", predictions=tmp_path / "out/air_bench/predictions.jsonl")
    assert alone["splits"] == entry["splits"]
    one = run("air_bench", tmp_path / "one", data, endpoint=stub.url, air_bench={"tasks": ["Audio_Grounding"]})
    assert list(one["splits"]) == ["Audio_Grounding", "all"]
    with pytest.raises(UserError, match=r"air_bench\.tasks: Music_AQA: is none of Audio_Grounding, Sound_AQA"):
        run("air_bench", tmp_path / "none", data, endpoint=stub.url, air_bench={"tasks": ["Music_AQA"]})


def test_a_split_without_a_letter_has_no_official_accuracy(data: Path) -> None:
    answers = [Answer(question, "?") for question in air_bench.plan(air_bench.read(data), 0)]
    found = scored("air_bench", answers)
    assert found == {"official": {"unparsed": 100}, "strict": {"accuracy": 0, "unparsed": 100}}


def test_a_missing_recording_is_an_error_row_and_no_other_is_taken_for_it(
    stub: Any, data: Path, tmp_path: Path
) -> None:
    (data / "Foundation/Sound_AQA_clothoaqa/0.wav").unlink()
    entry = run("air_bench", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (3, 1)
    assert "Sound_AQA_clothoaqa/0.wav" in json_lines(tmp_path / "out/air_bench/errors.jsonl")[0]["error"]


def reference_score(rows: list[tuple[str, list[str], str]]) -> tuple[int, int, int]:
    """The published scorer: how many were counted, were right, and had no letter."""
    counted = right = failed = 0
    for reply, choices, answer in rows:
        said = "".join(character for character in reply.strip() if character != "\n")
        if said in ("", "None"):
            failed += 1
            continue
        if said[0] in ("A", "B", "C", "D"):
            letter = said[0]
        elif len(said) > 1 and said[len(said) - 2] in ("A", "B", "C", "D"):
            letter = said[len(said) - 2]
        else:
            failed += 1
            continue
        counted += 1
        padded = [*choices, None, None]
        right += letter == next(letters for letters, choice in zip("ABCD", padded, strict=False) if choice == answer)
    return counted, right, failed


def test_the_published_scorer_is_matched_to_its_last_digit() -> None:
    sets = [["yes", "no"], ["A", "B", "C"], ["Dog", "Cat", "Dr", "None"]]
    answers, rows = [], []
    for number, reply in enumerate(awkward_replies(10_000, ["A", "D", "None", "yes", "Dog", "B."])):
        choices = sets[number % 3]
        right = choices[number % len(choices)]
        question = Question(str(number), "all", ({"id": str(number), "audio": ""},), "", right, choices=tuple(choices))
        answers.append(Answer(question, reply))
        rows.append((reply, choices, right))
    counted, right_ones, failed = reference_score(rows)
    assert counted > 1000
    assert failed > 1000
    found = scored("air_bench", answers)["official"]
    # It prints the quotient with all its digits; ours is the same number times a hundred.
    assert found == {"accuracy": 100 * (right_ones / counted), "unparsed": 100 * (failed / len(rows))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice_b": None}, "row 2: choice_b: missing"),
        ({"choice_c": 3}, "row 2: choice_c: should be text, is 3"),
        ({"question": ["?"]}, "row 2: question: should be text"),
        ({"answer_gt": "maybe"}, "row 2: answer_gt: 'maybe' is none of the choices"),
        ({"uniq_id": 0}, "row 2: uniq_id: 0 stands in row 1 already"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    changed = {key: value for key, value in (ROWS[1] | change).items() if value is not None}
    write_json(data / "Foundation/Foundation_meta.json", [ROWS[0], changed])
    with pytest.raises(UserError, match=f"Foundation_meta.json: {message}"):
        air_bench.read(data)


def test_a_folder_without_the_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Foundation_meta\.json there"):
        air_bench.read(tmp_path)


def test_a_reference_that_is_no_choice_is_refused(tmp_path: Path) -> None:
    row = {"id": "1", "audio": "a.wav", "prompt": "?", "response": "A", "reference": "fox", "choices": ["Dog", "Cat"]}
    write_json(tmp_path / "p.jsonl", row)
    with pytest.raises(UserError, match="air_bench: 1: reference: 'fox' is none of the choices"):
        run("air_bench", tmp_path / "out", predictions=tmp_path / "p.jsonl")
