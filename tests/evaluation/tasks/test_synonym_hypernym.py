import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import json_lines, run, scored

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import synonym_hypernym
from balsa_ray.evaluation.words import packaged

CLIPS = [
    {"id": "a", "audio": "a.wav", "tags": ["rain", "siren"]},
    {"id": "b", "audio": "b.wav", "tags": ["dog barking"]},
    {"id": "c", "audio": "c.wav", "tags": ["thunder", "a sound of no word"]},
    {"id": "d", "audio": "d.wav", "events": [{"label": "violin", "start": 0.0, "end": 1.0}]},
    {"id": "e", "audio": "e.wav", "caption": "No labels."},
]


def test_each_label_is_asked_in_three_forms_with_one_wording() -> None:
    questions = synonym_hypernym.plan(CLIPS, 0)
    assert Counter(q.split for q in questions) == {form: len(questions) / 3 for form in synonym_hypernym.FORMS}
    assert len({q.id for q in questions}) == len(questions)
    for group in zip(*[iter(questions)] * 3, strict=True):
        label, synonym, hypernym = group
        assert {q.extra["label"] for q in group} == {label.object}
        assert synonym.object in packaged()[label.object].synonyms
        assert hypernym.object in packaged()[label.object].hypernyms
        assert len({q.prompt.replace(q.object, "X") for q in group}) == 1
        assert len({q.reference for q in group}) == 1
    assert {q.clips[0]["id"] for q in questions} == {"a", "b", "c", "d"}
    for clip in "abcd":
        references = Counter(q.reference for q in questions if q.clips[0]["id"] == clip)
        assert references["yes"] == references["no"] > 0


def test_nothing_is_denied_that_is_there_by_another_name() -> None:
    for seed in range(20):
        for question in synonym_hypernym.plan(CLIPS, seed):
            if question.reference == "no" and question.clips[0]["id"] in "ac":
                assert question.object != "weather"  # rain is in the one clip, thunder in the other


def test_the_plan_depends_on_seed_and_clip_alone() -> None:
    plan = synonym_hypernym.plan(CLIPS, 1)
    assert sorted(q.id for q in synonym_hypernym.plan(CLIPS[::-1], 1)) == sorted(q.id for q in plan)
    assert {q.id for q in synonym_hypernym.plan(CLIPS, 2)} != {q.id for q in plan}


def test_figures_by_hand() -> None:
    questions = [q for q in synonym_hypernym.plan(CLIPS, 0) if q.clips[0]["id"] in "bc"]
    first, second, third, fourth = (questions[i : i + 3] for i in range(0, 12, 3))
    replies = [*("Yes", "Yes", "No"), *("No", "Yes", "No"), *("Yes", "?", "Yes"), *("No", "No", "Yes")]
    answers = [Answer(q, reply) for q, reply in zip((*first, *second, *third, *fourth), replies, strict=True)]
    assert [of[0].reference for of in (first, second, third, fourth)] == ["yes", "no", "yes", "no"]
    # Label and synonym agree in the first and the fourth; of two labels that were affirmed, one hypernym was.
    assert scored("synonym_hypernym", answers)["strict"] == {"consistency": 50, "entailment": 50, "unparsed": 25}
    labels = [answer for answer in answers if answer.question.split == "label"]
    assert scored("synonym_hypernym", labels)["strict"]["f1_score"] == 100
    synonyms = [answer for answer in answers if answer.question.split == "synonym"]
    # "No" once, rightly, where it was right twice.
    assert scored("synonym_hypernym", synonyms)["strict"]["f1_score"] == pytest.approx(100 * 2 / 3)


def test_words_of_ones_own_and_of_an_ontology(tmp_path: Path) -> None:
    words, ontology = tmp_path / "words.yaml", tmp_path / "ontology.json"
    words.write_text(
        "rain: {synonyms: [drizzle], hypernyms: [precipitation]}\nflute: {synonyms: [fife], hypernyms: [pipe]}"
    )
    clips = [{"id": tag, "audio": "a.wav", "tags": [tag]} for tag in ("rain", "flute", "thunder")]
    asked = {q.object for q in synonym_hypernym.plan(clips, 0, words=str(words))}
    assert asked == {"rain", "drizzle", "precipitation", "flute", "fife", "pipe"}
    rows = [
        {"id": "1", "name": "Weather phenomena", "child_ids": ["2"]},
        {"id": "2", "name": "Thunder", "child_ids": []},
    ]
    ontology.write_text(json.dumps(rows))
    asked = {q.object for q in synonym_hypernym.plan(clips, 0, words=str(words), ontology=str(ontology))}
    assert {"thunder", "thunderclap", "weather phenomena"} <= asked


def test_a_run_and_its_predictions_score_alike(stub: Any, manifest: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("Yes.")
    entry = run("synonym_hypernym", tmp_path / "out", manifest, endpoint=stub.url)
    assert set(entry["splits"]) == {"label", "synonym", "hypernym", "all"}
    together = entry["splits"]["all"]["strict"]
    assert together["consistency"]["value"] == together["entailment"]["value"] == 100
    assert together["consistency"]["n"] == entry["splits"]["label"]["n"]
    alone = run("synonym_hypernym", tmp_path / "alone", predictions=tmp_path / "out/synonym_hypernym/predictions.jsonl")
    assert alone["splits"] == entry["splits"]


def test_a_run_takes_words_from_a_file(stub: Any, manifest: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: stub.says("Yes.")
    words = tmp_path / "words.yaml"
    words.write_text(
        "rain: {synonyms: [drizzle], hypernyms: [precipitation]}\n"
        "siren: {synonyms: [emergency horn], hypernyms: [alarm]}\n"
    )
    run("synonym_hypernym", tmp_path / "out", manifest, endpoint=stub.url, synonym_hypernym={"words": str(words)})
    asked = json_lines(tmp_path / "out/synonym_hypernym/predictions.jsonl")
    assert {row["object"] for row in asked} == {"rain", "drizzle", "precipitation", "siren", "emergency horn", "alarm"}


def test_a_missing_recording_is_counted(stub: Any, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "0.flac").unlink()
    entry = run("synonym_hypernym", tmp_path / "out", manifest, endpoint=stub.url)
    failed = json_lines(tmp_path / "out/synonym_hypernym/errors.jsonl")
    assert entry["errors"] == len(failed) > 0
    assert {row["audio"][0] for row in failed} == {str(tmp_path / "0.flac")}


def test_labels_without_other_words_make_no_benchmark(stub: Any, tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"id": "a", "audio": "a.wav", "tags": ["a sound of no word"]}) + "\n")
    with pytest.raises(UserError, match=r"has nothing to make synonym_hypernym from .*synonyms and hypernyms"):
        run("synonym_hypernym", tmp_path / "out", path, endpoint=stub.url)


def test_predictions_without_the_label_are_refused() -> None:
    clip = ({"id": "a", "audio": "a"},)
    answers = [Answer(Question(form, form, clip, "?", "yes"), "Yes") for form in ("label", "synonym")]
    with pytest.raises(UserError, match="label: label: missing"):
        scored("synonym_hypernym", answers)
