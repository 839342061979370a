import pytest

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import describe
from balsa_ray.identity import rng

CLIPS = [
    {"id": "a", "audio": "a.wav", "tags": ["rain", "wind"]},
    {"id": "b", "audio": "b.wav", "tags": ["siren"]},
    {"id": "c", "audio": "c.wav", "caption": "No labels."},
]


def test_each_labelled_clip_is_described_once() -> None:
    questions = describe.plan(CLIPS, seed=0)
    assert [(q.clips[0]["id"], q.reference) for q in questions] == [("a", ["rain", "wind"]), ("b", ["siren"])]
    assert describe.plan(CLIPS, seed=0) == questions


def test_micro_scores_by_hand() -> None:
    questions = describe.plan(CLIPS, seed=0)
    answers = [Answer(questions[0], "I hear rain, rain and a siren."), Answer(questions[1], "I hear a siren.")]
    scores = describe.score(answers, rng(0, "x"), 20)["strict"]
    # Named: {rain, siren} and {siren}; right: rain and siren; true: three.
    assert scores["precision"]["value"] == pytest.approx(200 / 3)
    assert scores["recall"]["value"] == pytest.approx(200 / 3)
    assert scores["repeated"]["value"] == scores["exact"]["value"] == 50
    assert describe.correct(answers[1], describe.parse(answers[1]))


def test_a_sound_that_no_clip_has_counts_only_with_the_lexicon() -> None:
    for labels, precision in (("manifest", 100), ("lexicon", 50)):
        question = describe.plan(CLIPS, seed=0, labels=labels)[1]
        scores = describe.score([Answer(question, "a siren and a piano")], rng(0, "x"), 20)["strict"]
        assert scores["precision"]["value"] == precision


def test_labels_to_look_for_are_not_guessed() -> None:
    with pytest.raises(UserError, match="data_root"):
        describe.parse(Answer(Question("q", "all", ({"id": "a", "audio": "a"},), "What?", ["rain"]), "rain"))
