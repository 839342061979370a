import pytest

from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import reasoning
from balsa_ray.identity import rng

CLIPS = [
    {
        "id": "a",
        "audio": "a.wav",
        "tags": ["rain", "siren", "rain"],
        "events": [
            {"label": "siren", "start": 1.0, "end": 2.0},
            {"label": "rain", "start": 0.2, "end": 1.0},
            {"label": "rain", "start": 3.0, "end": 4.0},
        ],
    },
    {
        "id": "b",
        "audio": "b.wav",
        "events": [{"label": "rain", "start": 0.0, "end": 1.0}, {"label": "wind", "start": 0.4, "end": 1.0}],
    },
    {"id": "c", "audio": "c.wav", "caption": "No labels."},
]


def test_counts_are_of_labels_and_orders_of_first_onsets() -> None:
    questions = reasoning.plan(CLIPS, seed=0)
    count_a, order, turned, count_b = questions  # the labels of b begin too close together
    assert (count_a.reference, count_b.reference) == ("2", "2")
    assert order.reference == turned.reference == "rain"
    assert order.prompt.index("rain") < order.prompt.index("siren")
    assert turned.prompt.index("rain") > turned.prompt.index("siren")
    assert reasoning.plan(CLIPS, seed=0) == questions


@pytest.mark.parametrize(
    ("reply", "read"),
    [("There are two different sounds.", "2"), ("2", "2"), ("02.", "2"), ("One or two.", ""), ("none", "0"), ("?", "")],
)
def test_a_number_is_read_if_there_is_one(reply: str, read: str) -> None:
    assert reasoning.parse(Answer(reasoning.plan(CLIPS, seed=0)[0], reply)) == read


def test_scores_by_hand() -> None:
    questions = [q for q in reasoning.plan(CLIPS, seed=0) if q.split == "order"]
    answers = [Answer(questions[0], "rain comes first."), Answer(questions[1], "Rain before the siren.")]
    scores = reasoning.score(answers, rng(0, "x"), 20)["strict"]
    assert (scores["accuracy"]["value"], scores["unparsed"]["value"]) == (50, 50)  # the second names both
