from balsa_ray.evaluation.questions import Answer
from balsa_ray.evaluation.tasks import choice
from balsa_ray.identity import rng

CLIPS = [
    {"id": "a", "audio": "a.wav", "tags": ["rain", "wind"]},
    {"id": "b", "audio": "b.wav", "tags": ["siren"]},
    {"id": "c", "audio": "c.wav", "tags": ["church bell"], "events": [{"label": "Dog-Bark", "start": 0, "end": 1}]},
    {"id": "d", "audio": "d.wav", "tags": ["dog bark"]},
    {"id": "e", "audio": "e.wav", "caption": "No labels."},
]


def test_one_option_is_right_and_nothing_that_is_there_is_a_wrong_one() -> None:
    questions = choice.plan(CLIPS, seed=0)
    assert [q.clips[0]["id"] for q in questions] == [name for name in "abcd" for _ in range(2)]
    for question in questions:
        there = {*question.clips[0]["tags"], *(["dog bark"] if question.clips[0]["id"] == "c" else [])}
        assert question.choices[-1] == choice.NONE_OF_THESE
        assert len(set(question.choices)) == 4
        if question.split == "solvable":
            assert set(question.choices) & there == {question.reference}
        else:
            assert not set(question.choices) & there
            assert question.reference == choice.NONE_OF_THESE
        assert all(f"({letter}) {o}" in question.prompt for letter, o in zip("abcd", question.choices, strict=True))
    assert choice.plan(CLIPS, seed=0) == questions


def test_the_place_of_the_right_option_varies() -> None:
    clips = [{"id": str(i), "audio": "x", "tags": [f"sound {i % 7}"]} for i in range(60)]
    places = {q.choices.index(str(q.reference)) for q in choice.plan(clips, seed=0) if q.split == "solvable"}
    assert places == {0, 1, 2}


def test_too_few_absent_labels_make_no_question() -> None:
    assert choice.plan(CLIPS[:2], seed=0) == []  # three labels in all


def test_abstaining_counts_where_the_clip_was_heard() -> None:
    questions = choice.plan(CLIPS, seed=0)
    # Everything solvable of clip a is answered rightly, nothing else is: then "none of these" is said to all.
    answers = [
        Answer(q, str(q.reference) if q.clips[0]["id"] == "a" and q.split == "solvable" else "(d) none of these")
        for q in questions
    ]
    scores = choice.score(answers, rng(0, "x"), 20)["strict"]
    assert scores["accuracy"]["value"] == 100 * 5 / 8
    assert scores["abstained"]["value"] == 100 * 7 / 8
    assert scores["conditional_accuracy"]["value"] == 100
    assert scores["conditional_accuracy"]["n"] == 1
    solvable = [answer for answer in answers if answer.question.split == "solvable"]
    assert "conditional_accuracy" not in choice.score(solvable, rng(0, "x"), 20)["strict"]
    assert choice.score(solvable, rng(0, "x"), 20)["strict"]["accuracy"]["value"] == 25
