from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import awkward_replies, json_lines, run, scored, write_csv, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import nonspeech7k


def row(file: str, label: str) -> dict[str, str]:
    """A row under the published header, which is spelt otherwise than that of the train set."""
    return {
        "Filename": file,
        "File_ID": file.partition("_")[0],
        "Durationin ms": "1200",
        "Class_id": "0",
        "Classname": label,
        "Augment Id": "0",
        "Augmentation type": "Original",
        "source": "https://freesound.org/",
    }


ROWS = [row("1_1_0.wav", "cough"), row("2_6_0.wav", "yawm"), row("3_3_0.wav", "Laugh"), row("4_1_0.wav", "cough")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_csv(tmp_path / "data/metadata of test set.csv", ROWS)
    write_csv(tmp_path / "data/metadata of train set .csv", [row("9_1_0.wav", "cough")])
    for file in ("1_1_0", "2_6_0", "3_3_0", "4_1_0"):
        write_recording(tmp_path / f"data/test/test/{file}.wav")
        write_recording(tmp_path / f"data/train/{file}.wav")  # of this name, but another recording
    return tmp_path / "data"


def test_each_clip_of_the_test_set_is_asked_with_options_and_twice_for_yes_or_no(data: Path) -> None:
    questions = nonspeech7k.plan(nonspeech7k.read(data), 0)
    assert Counter(q.split for q in questions) == {"multiple_choice": 4, "yes_no": 8}
    assert all("/test/test/" in str(q.clips[0]["audio"]) for q in questions)
    options = [q for q in questions if q.split == "multiple_choice"]
    assert [q.reference for q in options] == ["coughing", "yawning", "laughter", "coughing"]
    assert all(sorted(q.choices) == sorted(nonspeech7k.SOUNDS.values()) for q in options)
    assert len({q.choices for q in options}) > 1
    assert f"\n(a) {options[0].choices[0]}\n(b) {options[0].choices[1]}\n" in options[0].prompt
    for yes, no in zip(*[iter(q for q in questions if q.split == "yes_no")] * 2, strict=True):
        assert (yes.reference, no.reference) == ("yes", "no")
        assert [yes.object] == yes.clips[0]["tags"] != [no.object]
        assert no.object in no.prompt
    assert len({q.id for q in questions}) == 12


def test_the_plan_depends_on_seed_and_file_alone(data: Path) -> None:
    clips = nonspeech7k.read(data)
    plan = nonspeech7k.plan(clips, 1)
    assert sorted(q.id for q in nonspeech7k.plan(clips[::-1], 1)) == sorted(q.id for q in plan)
    assert {q.id for q in nonspeech7k.plan(clips, 2)} != {q.id for q in plan}


def test_figures_by_hand(data: Path) -> None:
    questions = nonspeech7k.plan(nonspeech7k.read(data), 0)
    options = [q for q in questions if q.split == "multiple_choice"]
    letter = "abcdefg"[options[0].choices.index("coughing")]
    replies = [f"({letter})", "It is a yawning person.", "coughing or laughter", "sneezing"]
    answers = [Answer(q, reply) for q, reply in zip(options, replies, strict=True)]
    # Right: one of two coughs and the yawn, not the laugh; two sounds at once can't be read.
    assert scored("nonspeech7k", answers) == {
        "strict": {"accuracy": 50, "balanced_accuracy": 50, "unparsed": 25},
    }
    yes = [Answer(q, "Yes.") for q in questions if q.split == "yes_no"]
    found = scored("nonspeech7k", yes)["strict"]
    assert (found["accuracy"], found["yes_rate"], found["unparsed"]) == (50, 100, 0)


def test_balanced_accuracy_is_the_mean_over_classes_for_any_replies(data: Path) -> None:
    template = nonspeech7k.plan(nonspeech7k.read(data), 0)[0]
    sounds = list(nonspeech7k.SOUNDS.values())
    answers = [
        Answer(
            Question(str(i), "multiple_choice", template.clips, "?", sounds[i % 5], choices=tuple(sounds)),
            reply,
        )
        for i, reply in enumerate(awkward_replies(2_000, sounds))
    ]
    right = Counter(a.question.reference for a in answers if nonspeech7k.parse(a) == a.question.reference)
    assert min(right[sound] for sound in sounds[:5]) > 0
    found = scored("nonspeech7k", answers)["strict"]
    assert found["accuracy"] == 100 * (right.total() / 2_000)
    assert found["balanced_accuracy"] == pytest.approx(sum(100 * right[sound] / 400 for sound in sounds[:5]) / 5)


def test_a_run_and_its_predictions_score_alike(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("Yes, I hear coughing.")
    entry = run("nonspeech7k", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (12, 0)
    alone = run("nonspeech7k", tmp_path / "alone", predictions=tmp_path / "out/nonspeech7k/predictions.jsonl")
    assert alone["splits"] == entry["splits"]


def test_the_sound_stands_in_for_the_recording(stub: Any, data: Path, tmp_path: Path) -> None:
    run("nonspeech7k", tmp_path / "out", data, endpoint=stub.url, modality="metadata")
    assert stub.requests[0]["messages"][0]["content"].startswith("[Begin of audio] coughing [End of audio]\n")


def test_a_missing_recording_is_three_error_rows(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "test/test/2_6_0.wav").unlink()
    entry = run("nonspeech7k", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (9, 3)
    assert {row["split"] for row in json_lines(tmp_path / "out/nonspeech7k/errors.jsonl")} == {
        "multiple_choice",
        "yes_no",
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], row("5.wav", "hiccup")], "row 2: Classname: must be one of breath, cough, .*, not 'hiccup'"),
        ([ROWS[0], ROWS[0]], "row 2: Filename: '1_1_0.wav' stands in an earlier row"),
        ([{"Filename": "1.wav"}], "row 1: Classname: missing"),
    ],
)
def test_a_bad_row_is_named(data: Path, rows: list[dict[str, str]], message: str) -> None:
    write_csv(data / "metadata of test set.csv", rows)
    with pytest.raises(UserError, match=f"metadata of test set.csv: {message}"):
        nonspeech7k.read(data)


def test_a_missing_table_and_missing_options_are_named(data: Path) -> None:
    question = Question("q", "multiple_choice", ({"id": "a", "audio": "a"},), "?", "coughing")
    with pytest.raises(UserError, match="q: choices: missing"):
        nonspeech7k.parse(Answer(question, "coughing"))
    (data / "metadata of test set.csv").unlink()
    with pytest.raises(UserError, match=r"metadata of test set.csv: no such file"):
        nonspeech7k.read(data)
