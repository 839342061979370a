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
from balsa_ray.evaluation.tasks import audio_hallucination, existence

TEMPLATES = [
    "Is there a sound of {} in the audio?",
    "Does the audio contain the sound of {}?",
    "Have you noticed the sound of {} in the audio?",
    "Can you hear the sound of {} in the audio?",
    "Can you detect the sound of a {} in the audio?",
]


def row(number: int, clip: str, sound: str, label: str, sampling: str, template: int = 1) -> dict[str, Any]:
    asked = {"entry_id": number, "audio_index": clip, "prompt_text": TEMPLATES[template - 1].format(sound)}
    said = {"object": sound, "attribute": "positive" if label == "Yes" else "negative", "label": label}
    return asked | said | {"sampling": sampling}


RANDOM = [
    row(0, "Ya", "speech", "Yes", "random"),
    row(1, "Ya", "siren", "No", "random"),
    row(2, "Yb", "train", "Yes", "random"),
    row(3, "Yb", "rain", "No", "random"),
]
# As in the published set: speech is asked as absent of a clip in which it is present, and template 2 takes its present
# sound from another clip.
POPULAR = [
    row(0, "Ya", "speech", "Yes", "popular"),
    row(1, "Ya", "speech", "No", "popular"),
    row(2, "Yb", "train", "Yes", "popular"),
    row(3, "Yb", "speech", "No", "popular"),
    row(4, "Yb", "speech", "Yes", "popular", template=2),
    row(5, "Yb", "vehicle", "No", "popular", template=2),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two of the three sets, one in Parquet and one in CSV, beside a table of something else."""
    root = tmp_path / "data"
    write_parquet(root / "AudioHallucination_AudioCaps-Random/data/test-00000-of-00001-1.parquet", RANDOM)
    write_csv(root / "popular.csv", POPULAR)
    write_csv(root / "audio/metadata.csv", [{"file_name": "Ya.wav", "label": "speech"}])
    write_recording(root / "audio/Ya.wav")
    write_recording(root / "audio/b.flac")  # without the Y
    return root


def test_figures_by_hand(data: Path) -> None:
    questions = [q for q in audio_hallucination.plan(audio_hallucination.read(data), 0) if q.split == "popular"]
    replies = {
        "popular/0": "Yes.",
        "popular/1": "no",  # bare: unparsed for the published parser
        "popular/2": "I can see eyes",  # a yes for it
        "popular/3": "No.",
        "popular/4": "No, but yesterday it did",  # a yes for it
        "popular/5": "Yes.",
    }
    found = scored("audio_hallucination", answered(questions, replies))
    # Not parsed as yes: two, of which one is rightly no; three are no. F1 is made from 50 and 33.33.
    official = {"accuracy": 66.67, "precision": 50.0, "recall": 33.33, "f1_score": 40.0, "yes_rate": 66.67}
    assert found["official"] == official | {"unparsed": 100 * (1 / 6)}
    # Strict: yes, no, unparsed, no, no, yes. No twice rightly of three said; right: 0, 1 and 3.
    assert found["strict"]["accuracy"] == 50
    assert found["strict"]["precision"] == found["strict"]["recall"] == pytest.approx(200 / 3)
    assert found["strict"]["unparsed"] == pytest.approx(100 / 6)
    # Speech is absent and present in a by template 1, in b because template 2 says so.
    assert found["strict"]["contradictory"] == pytest.approx(200 / 6)


def test_template_1_alone_leaves_the_flawed_positives_out(data: Path) -> None:
    rows = audio_hallucination.read(data)
    questions = [q for q in audio_hallucination.plan(rows, 0, templates=1) if q.split == "popular"]
    assert [q.id for q in questions] == [f"popular/{number}" for number in range(4)]
    found = scored("audio_hallucination", [Answer(question, "No.") for question in questions])
    assert found["strict"]["contradictory"] == 25
    random = [Answer(q, "No.") for q in audio_hallucination.plan(rows, 0) if q.split == "random"]
    assert scored("audio_hallucination", random)["strict"]["contradictory"] == 0


def test_every_published_template_is_known_and_another_is_told() -> None:
    rows = [row(n, "Ya", "a bell (large)", "Yes", "random", template=n) for n in range(1, 6)]
    for number in range(1, 6):
        asked = audio_hallucination.plan([one | {"audio": "x"} for one in rows], 0, templates=number)
        assert [q.prompt for q in asked] == [one["prompt_text"] for one in rows[:number]]
    other = [rows[0] | {"audio": "x", "label": "yes", "prompt_text": "Is a bell there?"}]
    assert audio_hallucination.plan(other, 0)[0].prompt == "Is a bell there?"
    with pytest.raises(UserError, match="random/1: 'Is a bell there\\?' is none of the five"):
        audio_hallucination.plan(other, 0, templates=4)


def test_a_prefix_stands_before_the_question_and_changes_no_id(data: Path) -> None:
    rows = audio_hallucination.read(data)
    plain, listen = (audio_hallucination.plan(rows, 0, prefix=prefix) for prefix in (None, "P1"))
    assert [q.id for q in plain] == [q.id for q in listen]
    assert listen[0].prompt == "Listen. Is there a sound of speech in the audio?"
    last = audio_hallucination.plan(rows, 0, prefix="P8")[0].prompt
    assert last.startswith("Focus on the given audio and the question and provide the answer. Is there")
    clips = [{"id": "a", "audio": "a", "tags": ["rain"]}, {"id": "b", "audio": "b", "tags": ["flute"]}]
    made, heard = (existence.plan(clips, 0, prefix=prefix) for prefix in (None, "P2"))
    assert [q.id for q in made] == [q.id for q in heard]
    assert heard[0].prompt == f"Listen closely to the audio before answering the following question. {made[0].prompt}"


def test_a_run_reads_all_sets_and_its_predictions_are_scored_alone(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("No.")
    entry = run("audio_hallucination", tmp_path / "out", data, endpoint=stub.url)
    assert {split: of["n"] for split, of in entry["splits"].items()} == {"random": 4, "popular": 6}
    predictions = json_lines(tmp_path / "out/audio_hallucination/predictions.jsonl")
    assert {row["audio"] for row in predictions} == {str(data / "audio/Ya.wav"), str(data / "audio/b.flac")}
    assert [row["clips"][0] for row in predictions] == ["Ya"] * 4 + ["Yb"] * 6  # each clip is read once
    alone = run(
        "audio_hallucination", tmp_path / "x", predictions=tmp_path / "out/audio_hallucination/predictions.jsonl"
    )
    assert alone["splits"] == entry["splits"]
    settings = {"audio_hallucination": {"prefix": "P4", "templates": 1}}
    run("audio_hallucination", tmp_path / "p4", data, endpoint=stub.url, **settings)
    assert all(
        row["prompt"].startswith("Listen closely to the audio and carefully")
        for row in json_lines(tmp_path / "p4/audio_hallucination/predictions.jsonl")
    )


def test_a_missing_recording_is_error_rows(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "audio/b.flac").unlink()
    entry = run("audio_hallucination", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (4, 6)
    assert "Yb" in json_lines(tmp_path / "out/audio_hallucination/errors.jsonl")[0]["error"]


def test_a_model_that_reads_labels_gets_the_clips_own(stub: Any, data: Path, tmp_path: Path) -> None:
    run("audio_hallucination", tmp_path / "out", data, endpoint=stub.url, modality="metadata")
    assert {prompt.splitlines()[0] for prompt in stub.prompts()} == {
        "[Begin of audio] speech [End of audio]",
        "[Begin of audio] train [End of audio]",
    }


def reference_figures(rows: list[tuple[str, str]]) -> dict[str, float]:
    """The published scorer, from its description: the scored class is no, all that isn't yes is taken for a no."""
    right = right_no = said_yes = no = 0
    for label, reply in rows:
        said = published_yes_no(reply)
        right += said == label
        right_no += said == label == "no"
        said_yes += said == "yes"
        no += label == "no"
    accuracy = round(right / len(rows) * 100, 2)
    precision = round(right_no / (len(rows) - said_yes) * 100, 2)
    recall = round(right_no / no * 100, 2)
    f1 = round((2 * precision * recall) / (precision + recall), 2)
    yes = round(said_yes / len(rows) * 100, 2)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1_score": f1, "yes_rate": yes}


def test_the_published_scorer_is_matched_to_its_last_printed_digit() -> None:
    rows, answers = [], []
    for number, reply in enumerate(awkward_answers(10_000, ["speech", "dog barking"])):
        label = "yes" if number % 3 else "no"
        rows.append((label, reply))
        clip = ({"id": str(number // 7), "audio": ""},)
        answers.append(Answer(Question(str(number), "random", clip, "", label.title(), "speech"), reply))
    parts = [(0, 10_000), *((start, start + 17 + start % 283) for start in range(0, 9_700, 97))]
    for start, end in parts:
        found = scored("audio_hallucination", answers[start:end])["official"]
        assert {name: found[name] for name in found if name != "unparsed"} == reference_figures(rows[start:end])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "perhaps"}, "row 2: label: should be Yes or No, is 'perhaps'"),
        ({"sampling": "rare"}, "row 2: sampling: should be one of random, popular, adversarial, is 'rare'"),
        ({"entry_id": 0}, r"row 2: entry_id: '0' stands in .*popular\.csv: row 1 already \(popular\)"),
        ({"prompt_text": " "}, "row 2: prompt_text: empty"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    write_csv(data / "popular.csv", [POPULAR[0], POPULAR[1] | change])
    with pytest.raises(UserError, match=f"popular.csv: {message}"):
        audio_hallucination.read(data)


def test_a_missing_column_a_wrong_type_and_a_missing_set_are_named(data: Path, tmp_path: Path) -> None:
    write_csv(data / "popular.csv", [{k: v for k, v in POPULAR[0].items() if k != "object"}])
    with pytest.raises(UserError, match=r"popular\.csv: row 1: object: missing"):
        audio_hallucination.read(data)
    write_parquet(data / "popular.parquet", [POPULAR[0] | {"object": 3}])
    with pytest.raises(UserError, match=r"popular\.parquet: row 1: object: should be text, is 3"):
        audio_hallucination.read(data / "popular.parquet")
    (data / "popular.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"popular\.parquet: can't be read"):
        audio_hallucination.read(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Parquet or CSV files with audio_index"):
        audio_hallucination.read(tmp_path / "empty")


def test_contradictions_are_left_out_where_a_file_does_not_say_what_was_asked_for() -> None:
    answers = [Answer(Question("1", "all", ({"id": "a", "audio": "a"},), "?", "Yes"), "yes")]
    found = scored("audio_hallucination", answers)
    assert "contradictory" not in found["strict"]
    assert found["strict"]["accuracy"] == found["official"]["accuracy"] == 100
