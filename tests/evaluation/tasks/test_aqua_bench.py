from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import answered, awkward_replies, json_lines, run, scored, write_json, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import aqua_bench

TYPES = ("Solvable", "AAD", "IASD", "IAQD")
OPTIONS = {
    "Solvable": ["Rooster", "Crow", "Dog", "Pig", "Sheep"],
    "AAD": ["Crow", "Cat", "Pig", "Hen", "None of the above"],
    "IASD": ["Fairy", "Book", "Rome", "Latte", "None of the above"],
    "IAQD": ["Library", "Beach", "Hospital", "Cafe", "Unanswerable"],
}


def group(number: int, audio: str) -> list[dict[str, Any]]:
    """Four rows about a clip in which a dog barks."""
    return [
        {
            "id": 4 * number + place,
            "type": kind,
            "question": "Which animal? " + " ".join(map("({}) {}".format, "abcde", options)),
            "options": options,
            "answer": "Dog" if kind == "Solvable" else options[-1],
            "audio_verb": "barking",
            "audio_id": Path(audio).stem,
            "audio_filename": audio,
            "audio_animal": "Dog",
        }
        for place, (kind, options) in enumerate(OPTIONS.items())
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two groups of animals, one of instruments whose file name stands for two recordings, and one of a variant."""
    root = tmp_path / "data"
    animals = [*group(0, "ESC-50-master/audio_16k/1-A-0.wav"), *group(1, "ESC-50-master/audio_16k/2-A-0.wav")]
    write_json(root / "evaluation-data/AUQA-Bench-Animal-Sounds-Track.json", animals)
    instruments = group(0, "/cluster/somebody/music_dataset/Piano/302.wav")
    write_json(root / "evaluation-data/AQUA-Bench-Music-Instruments-Sounds-Track.json", instruments)
    write_json(root / "evaluation-data/AUQA-Bench-Animal-Sounds-Track-Option-Design1.json", animals[:4])
    for name in ("esc/audio/1-A-0.wav", "esc/audio/2-A-0.wav", "kaggle/Piano/302.wav", "kaggle/Violin/302.wav"):
        write_recording(root / name)
    return root


REPLIES = {
    # "The answer is (c) Dog." is an e for the published extractor: "the" ends with one.
    "animal/0": "The answer is (c) Dog.",
    "animal/1": "(e) None of the above",
    "animal/2": "(e)",
    "animal/3": "I hear a dog, so (e) Unanswerable.",  # the published extractor: a
    "animal/4": "(c) Dog",
    "animal/5": "(e)",
    "animal/6": "(b) Book",
    "animal/7": "I don't know.",  # the published extractor: no a to e ends a word, no option stands there
}


def test_figures_by_hand(data: Path) -> None:
    questions = aqua_bench.plan(aqua_bench.read(data), 0, tracks=["animal"])
    assert [q.extra["type"] for q in questions] == [*TYPES, *TYPES]
    assert questions[0].prompt.startswith("Which animal? (a) Rooster")
    found = scored("aqua_bench", answered(questions, REPLIES))
    # Of the solvable ones the second is right for the published scorer, so that its group alone is conditional.
    conditional = {"conditional_aad": 100, "conditional_iasd": 0, "conditional_iaqd": 0}
    right = {"solvable": 50, "aad": 100, "iasd": 50, "iaqd": 0}
    assert found["official"] == right | conditional | {"unparsed": 12.5}
    conditional = {"conditional_aad": 100, "conditional_iasd": 50, "conditional_iaqd": 50}
    right = {"accuracy": 75, "solvable": 100, "aad": 100, "iasd": 50, "iaqd": 50}
    assert found["strict"] == right | conditional | {"unparsed": 12.5}


def test_without_a_solvable_answer_nothing_is_conditional(data: Path) -> None:
    questions = aqua_bench.plan(aqua_bench.read(data), 0, tracks=["animal"])
    wrong = scored("aqua_bench", [Answer(question, "(e)") for question in questions])["official"]
    assert wrong == {"solvable": 0, "aad": 100, "iasd": 100, "iaqd": 100, "unparsed": 0}
    unsolved = answered(questions[1:], REPLIES)  # the first question has no answer: its group isn't conditional
    assert scored("aqua_bench", unsolved)["strict"]["conditional_iasd"] == 0


def test_a_run_keeps_tracks_and_variants_apart(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("(e)")
    both = {"aqua_bench": {"variants": ["published", "design1"]}}
    entry = run("aqua_bench", tmp_path / "out", data, endpoint=stub.url, **both)
    assert {split: of["n"] for split, of in entry["splits"].items()} == {
        "animal": 8,
        "animal design1": 4,
        "instrument": 4,
    }
    assert entry["settings"]["variants"] == ["published", "design1"]
    predictions = json_lines(tmp_path / "out/aqua_bench/predictions.jsonl")
    piano = {row["audio"] for row in predictions if row["split"] == "instrument"}
    assert piano == {str(data / "kaggle/Piano/302.wav")}
    alone = run("aqua_bench", tmp_path / "alone", predictions=tmp_path / "out/aqua_bench/predictions.jsonl")
    assert alone["splits"] == entry["splits"]
    published = run("aqua_bench", tmp_path / "published", data, endpoint=stub.url)
    assert list(published["splits"]) == ["animal", "instrument"]


def test_a_missing_recording_is_an_error_row_and_no_other_is_taken_for_it(
    stub: Any, data: Path, tmp_path: Path
) -> None:
    (data / "kaggle/Piano/302.wav").unlink()
    entry = run("aqua_bench", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (8, 4)
    assert "Piano/302.wav" in json_lines(tmp_path / "out/aqua_bench/errors.jsonl")[0]["error"]


def reference_letter(reply: str, options: list[str]) -> str | None:
    """The published extractor, character by character."""
    said = reply.strip().lower()
    letters = "abcdefghij"[: len(options)]
    for place, character in enumerate(said):
        following = said[place + 1 : place + 2]
        if character in letters and not (following and (following.isalnum() or following == "_")):
            return character.upper()
    for place, option in enumerate(options):
        if option.strip().lower() in said:
            return letters[place].upper()
    return None


def reference_figures(rows: list[tuple[str, str, list[str], str]]) -> dict[str, str]:
    """What the published scorer prints for (type, answer, options, reply) in groups of four."""
    right, given = defaultdict(list), defaultdict(list)
    for start in range(0, len(rows), 4):
        found = {}
        for kind, answer, options, reply in rows[start : start + 4]:
            wanted = next(("ABCDEFGHIJ"[i] for i, option in enumerate(options) if option == answer), None)
            found[kind] = reference_letter(reply, options) == wanted
            right[kind].append(found[kind])
        for kind in TYPES[1:]:
            if found["Solvable"]:
                given[kind].append(found[kind])
    printed = {kind.lower(): f"{sum(hits) / len(hits):.3f}" for kind, hits in right.items()}
    return printed | {f"conditional_{kind.lower()}": f"{sum(hits) / len(hits):.3f}" for kind, hits in given.items()}


def test_the_published_scorer_is_matched_to_its_last_digit() -> None:
    words = sorted({option for options in OPTIONS.values() for option in options})
    answers, rows = [], []
    for number, reply in enumerate(awkward_replies(10_000, words)):
        kind = TYPES[number % 4]
        right = "Dog" if kind == "Solvable" else OPTIONS[kind][-1]
        extra = {"type": kind, "choices": OPTIONS[kind], "group": str(number // 4)}
        clip = {"id": str(number // 4), "audio": ""}
        answers.append(Answer(Question(str(number), "animal", (clip,), "", right, extra=extra), reply))
        rows.append((kind, right, OPTIONS[kind], reply))
    ours = scored("aqua_bench", answers)["official"]
    unparsed = ours.pop("unparsed")
    assert {name: f"{value / 100:.3f}" for name, value in ours.items()} == reference_figures(rows)
    assert unparsed == 100 * sum(reference_letter(reply, options) is None for *_, options, reply in rows) / len(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": None}, "row 2: options: missing"),
        ({"options": "Crow"}, "row 2: options: should be a list of texts"),
        ({"question": 3}, "row 2: question: should be text"),
        ({"type": "IASD"}, "row 2: type: should be AAD, is 'IASD'"),
        ({"answer": "Unicorn"}, "row 2: answer: 'Unicorn' is none of the options"),
        ({"id": 0}, "row 2: id: 0 stands in row 1 already"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    rows = group(0, "1-A-0.wav")
    rows[1] = {key: value for key, value in (rows[1] | change).items() if value is not None}
    write_json(data / "evaluation-data/AUQA-Bench-Animal-Sounds-Track.json", rows)
    with pytest.raises(UserError, match=f"Animal-Sounds-Track.json: {message}"):
        aqua_bench.read(data)


def test_a_bad_folder_is_named(data: Path, tmp_path: Path) -> None:
    write_json(data / "copy/AQUA-Bench-Animal-Sounds-Track.json", group(0, "1-A-0.wav"))
    with pytest.raises(UserError, match="the same track and variant as"):
        aqua_bench.read(data)
    write_json(tmp_path / "short/AQUA-Bench-Vocal-Sounds-Track.json", group(0, "1-A-0.wav")[:3])
    with pytest.raises(UserError, match="3 rows are no groups of 4"):
        aqua_bench.read(tmp_path / "short")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no files AQUA-Bench"):
        aqua_bench.read(tmp_path / "empty")
    with pytest.raises(UserError, match="which track"):
        aqua_bench.read(data / "esc/audio/1-A-0.wav")


def test_answers_of_others_need_type_and_options(tmp_path: Path) -> None:
    row = {"id": "1", "audio": "a.wav", "prompt": "?", "response": "(a)", "reference": "Dog", "options": ["Dog", "Cat"]}
    write_json(tmp_path / "p.jsonl", row | {"type": "solvable"})
    assert run("aqua_bench", tmp_path / "out", predictions=tmp_path / "p.jsonl")["splits"]["all"]["strict"]["solvable"]
    write_json(tmp_path / "p.jsonl", row)
    with pytest.raises(UserError, match="1: type: must be one of Solvable"):
        run("aqua_bench", tmp_path / "out", predictions=tmp_path / "p.jsonl")
    write_json(tmp_path / "p.jsonl", row | {"type": "AAD", "options": "Dog"})
    with pytest.raises(UserError, match="1: choices: missing"):
        run("aqua_bench", tmp_path / "out", predictions=tmp_path / "p.jsonl")
