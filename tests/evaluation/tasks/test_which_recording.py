from collections import Counter

from balsa_ray.evaluation.metrics import written
from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import which_recording
from balsa_ray.identity import rng

CLIPS = [{"id": str(i), "audio": f"{i}.wav", "tags": [f"sound {i % 5}", "hum"]} for i in range(21)]


def test_every_pair_is_asked_in_both_orders_about_a_label_of_one_clip() -> None:
    questions = which_recording.plan(CLIPS, seed=0)
    assert Counter(q.reference for q in questions) == {"first": len(questions) / 2, "second": len(questions) / 2}
    for question in questions:
        has = [question.object in clip["tags"] for clip in question.clips]
        assert has == [question.reference == "first", question.reference == "second"]
    assert max(Counter(clip["id"] for q in questions for clip in q.clips).values()) == 2
    assert which_recording.plan(CLIPS[::-1], seed=0) == questions


def test_always_first_is_half_right() -> None:
    answers = [Answer(question, "The first recording.") for question in which_recording.plan(CLIPS, seed=0)]
    scores = which_recording.score(answers, rng(0, "x"), 20)["strict"]
    assert written(scores["accuracy"]) == {"value": 50, "low": 50, "high": 50, "n": len(answers)}
    assert scores["first_rate"]["value"] == 100


def test_shared_labels_are_asked_about_too_and_nothing_else_changes() -> None:
    questions = which_recording.plan(CLIPS, seed=0, shared=True)
    assert [q for q in questions if q.split == "all"] == which_recording.plan(CLIPS, seed=0)
    assert {q.split for q in questions} == {"all", "both", "neither"}
    for question in questions:
        has = [question.object in clip["tags"] for clip in question.clips]
        assert {"both": all(has), "neither": not any(has), "all": any(has) and not all(has)}[question.split]
        assert question.reference == {"both": "both", "neither": "none"}.get(question.split, question.reference)
    assert len({q.id for q in questions}) == len(questions)
