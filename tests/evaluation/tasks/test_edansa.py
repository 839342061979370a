from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import json_lines, run, scored, write_csv, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import edansa

LABELS = ["Anth", "Bio", "Geo", "Sil", "Airc", "Bird", "Wind", "Rain", "Jet", "SongB", "Owl"]


def row(path: str, part: str, *present: str) -> dict[str, str]:
    """Nine columns about the clip, the last of them its path, then the labels."""
    about = {"batch": "1", "set": part, "region": "prudhoe", "Site ID": "12", "Date": "05/20/2019"}
    about |= {"Start Time": "07:00:00", "End Time": "07:00:10", "Length": "00:00:10", "Clip Path": path}
    return about | {label: str(int(label in present)) for label in LABELS}


ROWS = [
    row("prudhoe/12/a.wav", "test", "Bio", "Bird", "SongB"),
    row("prudhoe/12/b.wav", "test", "Anth", "Airc", "Jet", "Geo", "Wind"),
    row("prudhoe/12/c.wav", "test", "Bio", "Bird"),
    row("anwr/3/c.wav", "test", "Wind"),
    row("anwr/3/d.wav", "test", "Sil"),
    row("anwr/3/e.wav", "train", "Bio", "Bird", "Owl"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_csv(tmp_path / "data/labels.csv", ROWS)
    for entry in ROWS:
        write_recording(tmp_path / "data/data" / entry["Clip Path"])
    return tmp_path / "data"


def asked(data: Path, seed: int = 0, **settings: Any) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for question in edansa.plan(edansa.read(data), seed, **settings):
        assert str(question.clips[0]["audio"]).endswith(question.clips[0]["id"])
        found.setdefault(question.clips[0]["id"], []).append((question.object, str(question.reference)))
    return found


def test_half_of_the_answers_are_no_and_only_the_test_set_is_asked(data: Path) -> None:
    found = asked(data)
    assert set(found) == {"prudhoe/12/a.wav", "prudhoe/12/b.wav", "prudhoe/12/c.wav", "anwr/3/c.wav"}
    for pairs in found.values():
        assert Counter(reference for _, reference in pairs)["yes"] == len(pairs) / 2
    assert {label for label, reference in found["prudhoe/12/a.wav"] if reference == "yes"} == {
        "animal",
        "bird",
        "songbird",
    }
    assert set(asked(data, sets=["train"])) == set()  # nothing is absent where all clips have the same labels
    assert "anwr/3/e.wav" in asked(data, sets=["test", "train"])


def test_no_label_is_denied_that_may_be_there(data: Path) -> None:
    for seed in range(30):
        found = asked(data, seed, sets=["test", "train"])
        denied = {clip: {label for label, ref in pairs if ref == "no"} for clip, pairs in found.items()}
        # A bird that nobody named may be a songbird or an owl; the wind is weather, whatever `Geo` says.
        assert denied["prudhoe/12/c.wav"].isdisjoint({"songbird", "owl", "bird", "animal"})
        assert "weather or water" not in denied["anwr/3/c.wav"]
    assert any("owl" in asked(data, seed, sets=["test", "train"])["prudhoe/12/a.wav"].__repr__() for seed in range(30))


def test_every_published_label_has_words_and_a_wider_one_that_is_published() -> None:
    labels = edansa.labels()
    assert len(labels) == 40  # and silence
    assert {entry["wider"] for entry in labels.values() if "wider" in entry} <= set(labels)
    assert len({entry["words"] for entry in labels.values()}) == 40
    assert edansa._wider("Jet") == ["Airc", "Anth"]


def test_the_plan_depends_on_seed_and_clip_alone(data: Path) -> None:
    clips = edansa.read(data)
    plan = edansa.plan(clips, 1)
    assert sorted(q.id for q in edansa.plan(clips[::-1], 1)) == sorted(q.id for q in plan)
    assert len({q.id for q in plan}) == len(plan)


def test_figures_by_hand(data: Path) -> None:
    questions = edansa.plan(edansa.read(data), 0)
    said = ["No." if q.object in ("animal", "bird") else "Yes." if q.reference == "yes" else "?" for q in questions]
    answers = [Answer(question, reply) for question, reply in zip(questions, said, strict=True)]
    # Right: all that is there but animals and birds; denied rightly: these where they are absent.
    right = sum(
        (q.reference == "yes") != (q.object in ("animal", "bird")) and (q.reference == "yes" or reply == "No.")
        for q, reply in zip(questions, said, strict=True)
    )
    found = scored("edansa", answers)["strict"]
    assert found["accuracy"] == 100 * (right / len(questions))
    assert found["unparsed"] == 100 * (said.count("?") / len(said))


def test_a_run_and_its_predictions_score_alike(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "data/anwr/3/c.wav").unlink()  # another recording of this name is no help
    entry = run("edansa", tmp_path / "out", data, endpoint=stub.url)
    assert entry["errors"] == 2
    assert entry["splits"]["all"]["strict"]["accuracy"]["value"] == 50
    alone = run("edansa", tmp_path / "alone", predictions=tmp_path / "out/edansa/predictions.jsonl")
    assert alone["splits"] == entry["splits"]


def test_a_run_asks_about_the_sets_that_are_named(stub: Any, data: Path, tmp_path: Path) -> None:
    run("edansa", tmp_path / "out", data, endpoint=stub.url, edansa={"sets": ["test", "train"]})
    predictions = json_lines(tmp_path / "out/edansa/predictions.jsonl")
    assert str(data / "data/anwr/3/e.wav") in {prediction["audio"] for prediction in predictions}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0] | {"Bird": "2"}], "row 1: Bird: must be 0 or 1, not '2'"),
        ([ROWS[0] | {"Bird": ""}], "row 1: Bird: must be 0 or 1, not ''"),
        ([ROWS[0], ROWS[0]], "row 2: Clip Path: 'prudhoe/12/a.wav' stands in an earlier row"),
        ([ROWS[0] | {"set": "dev"}], "row 1: set: must be one of train, valid, test, not 'dev'"),
        ([ROWS[0] | {"Whale": "1"}], "Whale: not a label of EDANSA-2019"),
        ([{"set": "test", "Clip Path": "a.wav"}], "no labels from the tenth column on"),
        ([{"set": "test"}], "row 1: Clip Path: missing"),
    ],
)
def test_a_table_that_is_not_as_published_is_named(data: Path, rows: list[dict[str, str]], message: str) -> None:
    write_csv(data / "labels.csv", rows)
    with pytest.raises(UserError, match=f"labels.csv: {message}"):
        edansa.read(data)
