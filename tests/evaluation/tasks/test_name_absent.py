import pytest

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import name_absent
from balsa_ray.identity import rng

CLIPS = [
    {"id": "a", "audio": "a.wav", "tags": ["rain", "wind"]},
    {"id": "b", "audio": "b.wav", "tags": ["siren"]},
    {"id": "c", "audio": "c.wav", "caption": "No labels."},
]


def test_sounds_that_are_called_absent_and_are_there_are_errors() -> None:
    questions = name_absent.plan(CLIPS, seed=0)
    assert [(q.clips[0]["id"], q.reference) for q in questions] == [("a", ["rain", "wind"]), ("b", ["siren"])]
    answers = [Answer(questions[0], "There is no siren, no rain and no siren."), Answer(questions[1], "Nothing.")]
    scores = name_absent.score(answers, rng(0, "x"), 20)["strict"]
    # Named: siren and rain, of which rain is there; the second reply names nothing.
    assert [scores[name]["value"] for name in ("error", "replies_with_error", "unparsed")] == [50, 50, 50]
    assert not name_absent.correct(answers[0], ["siren", "rain"])
    assert name_absent.correct(answers[0], ["siren"])
    assert not name_absent.correct(answers[1], [])


def test_what_is_said_to_be_heard_is_not_called_absent() -> None:
    answer = Answer(name_absent.plan(CLIPS, seed=0)[0], "I hear rain, but no siren.")
    assert name_absent.parse(answer) == ["siren"]


def test_labels_to_look_for_are_not_guessed() -> None:
    with pytest.raises(UserError, match="data_root"):
        name_absent.parse(Answer(Question("q", "all", ({"id": "a", "audio": "a"},), "What?", ["rain"]), "rain"))
