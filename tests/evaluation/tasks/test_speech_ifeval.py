import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import json_lines, run, scored, write_json, write_json_lines, write_recording

from balsa_ray.config import UserError
from balsa_ray.evaluation.messages import content_of
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import speech_ifeval

CAPITALS, QUOTED, WORDS = "change_case:english_capital", "startend:quotation", "length_constraints:number_words"


def row(audio: str, instruction: str, *rules: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    named = {"instruction_id_list": [name for name, _ in rules], "kwargs": [given for _, given in rules]}
    base = {"audio_filepath": audio, "textual_audio": f"[00:00 - 00:01] {audio}(Gender: Female)"}
    return base | {"instruction": instruction, "dataset": "d", "metric": "m"} | (named if rules else {}) | more


CLOSED = [
    row("Speech/a.flac", "Write it down.\nIn capitals.", (CAPITALS, {}), id=0, label="RAIN"),
    row("Speech/b.flac", "Write it.\nIn quoted capitals.", (CAPITALS, {}), (QUOTED, {}), id=1, label="WIND"),
]
FEW = (WORDS, {"num_words": 3, "relation": "less than"})
CREATIVE = [row("Speech/a.flac", "A story of few words.", FEW, id=2), row("Gender/c.wav", "A poem.", FEW, id=3)]
COT = [row("Gender/c.wav", "Who speaks?\nThink step by step."), row("Speech/b.flac", "Which?\nStep by step.")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name, rows in (("closed_ended_questions", CLOSED), ("creative_writing", CREATIVE), ("chain-of-thought", COT)):
        write_json_lines(root / f"eval_data/{name}.jsonl", rows)
    write_json_lines(root / "eval_data/closed_ended_questions-woprompt.jsonl", [{"no": "part of it"}])
    for audio in ("Speech/a.flac", "Speech/b.flac", "Gender/c.wav"):
        write_recording(root / "audios" / audio)
    return root


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BALSA_API_KEY", "BALSA_JUDGE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


REPLIES = {
    "closed_ended-0": "RAIN.",
    "closed_ended-1": "WIND.",
    "creative_writing-2": "I don't",
    "creative_writing-3": "It rained a lot",
    "cot-1": "First, the pitch is high. So it's a woman.",
    "cot-2": "A woman.",
}
JUDGEMENTS = {"cot-1": "It says why.\nResult: YES", "cot-2": "Result: no, wait.\nResult: YES"}


def answers(data: Path, **settings: Any) -> list[Answer]:
    questions = speech_ifeval.plan(speech_ifeval.read(data), 0, **settings)
    return [Answer(q, REPLIES[q.id], JUDGEMENTS.get(q.id)) for q in questions]


def test_rows_are_asked_as_they_stand_those_about_a_recording_together(data: Path) -> None:
    questions = speech_ifeval.plan(speech_ifeval.read(data), 0)
    assert [q.id for q in questions] == [
        *("closed_ended-0", "creative_writing-2", "closed_ended-1", "cot-2", "creative_writing-3", "cot-1"),
    ]
    assert {q.system for q in questions} == {"Follow the given instructions."}
    assert questions[0].prompt == CLOSED[0]["instruction"]
    assert str(questions[0].clips[0]["audio"]).endswith("audios/Speech/a.flac")
    assert (questions[0].reference, questions[1].reference) == ("RAIN", "")


def test_two_wordings_of_a_recording_are_about_one_clip(data: Path) -> None:
    write_json_lines(data / "eval_data/creative_writing.jsonl", [CREATIVE[0] | {"textual_audio": "Otherwise."}])
    of = [q for q in speech_ifeval.plan(speech_ifeval.read(data), 0) if "a.flac" in q.clips[0]["audio"]]
    assert [q.clips[0]["in_words"] for q in of][1] == "Speech Input: Otherwise.\n"
    assert len({q.cluster for q in of}) == 1
    assert len({content_of(q.clips[0], "metadata") for q in of}) == 2
    assert len({content_of(q.clips[0], "audio") for q in of}) == 1


def test_figures_by_hand(data: Path) -> None:
    every = answers(data)
    split = {name: [a for a in every if a.question.split == name] for name in speech_ifeval.SPLITS}
    # The second is in capitals, but not in quotes.
    expected = {
        "prompt_level": 50,
        "instruction_level": 100 * (2 / 3),
        "change_case": 100,
        "wrapping": 0,
        "unparsed": 0,
    }
    assert scored("speech_ifeval", split["closed_ended"]) == {"official": expected, "strict": expected}
    # "I don't" is three words for the published rule, and two for ours; the poem has four.
    writing = scored("speech_ifeval", split["creative_writing"])
    assert writing["official"]["prompt_level"] == 0
    assert writing["strict"] == {"prompt_level": 50, "instruction_level": 50, "length_constraints": 50, "unparsed": 0}
    # The published rule takes a judge's first result, ours its last.
    reasoning = scored("speech_ifeval", split["cot"])
    assert (reasoning["official"]["cot_acc"], reasoning["strict"]["cot_acc"]) == (50, 100)
    together = scored("speech_ifeval", every)
    assert together["official"] == {
        "closed_ended": 50,
        "creative_writing": 0,
        "cot": 50,
        "if_rate": pytest.approx(100 / 3),
    }
    assert together["strict"]["if_rate"] == pytest.approx(200 / 3)


def test_without_a_judge_reasoning_has_no_figure(data: Path) -> None:
    every = [Answer(a.question, a.response) for a in answers(data)]
    assert set(scored("speech_ifeval", every)["official"]) == {"closed_ended", "creative_writing"}
    assert scored("speech_ifeval", [a for a in every if a.question.split == "cot"]) == {"official": {}, "strict": {}}
    of_cot = next(a for a in every if a.question.split == "cot")
    assert not speech_ifeval.correct(of_cot, speech_ifeval.parse(of_cot))


def test_parsed_is_what_was_followed(data: Path) -> None:
    read = {a.question.id: (a, speech_ifeval.parse(a)) for a in answers(data)}
    assert read["closed_ended-1"][1] == [CAPITALS]
    assert not speech_ifeval.correct(*read["closed_ended-1"])
    assert speech_ifeval.correct(*read["closed_ended-0"])
    assert speech_ifeval.correct(*read["cot-2"])


def test_a_judgement_that_can_not_be_read_is_a_no_and_is_counted(data: Path) -> None:
    cot = [Answer(a.question, a.response, "Maybe.") for a in answers(data) if a.question.split == "cot"]
    for block in scored("speech_ifeval", cot).values():
        assert block == {"cot_acc": 0, "unparsed": 100}


def test_the_judge_is_asked_about_reasoning_alone(data: Path) -> None:
    asked = {a.question.id: speech_ifeval.judge_prompt(a) for a in answers(data)}
    assert {name for name, prompt in asked.items() if prompt} == {"cot-1", "cot-2"}
    assert "What was asked: Which?\nStep by step.\n" in str(asked["cot-2"])
    assert "The reply: A woman.\n" in str(asked["cot-2"])


def reply_to(request: dict[str, Any], say: Any) -> Any:
    """Follows all closed ones, half of the others; the judge finds reasons in one reply of two."""
    content = request["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else content[-1]["text"]
    if "Does its reply reason?" in prompt:
        return say("Result: YES" if "Who speaks?" in prompt else "Result: NO")
    if "capitals" in prompt.lower():
        return say('"RAIN"')
    return say("Rain." if "story" in prompt else "One two three four.")


def test_a_run_with_a_judge_and_its_predictions_score_alike(stub: Any, data: Path, tmp_path: Path) -> None:
    stub.respond = lambda request: reply_to(request, stub.says)
    entry = run("speech_ifeval", tmp_path / "out", data, endpoint=stub.url, judge={"endpoint": stub.url})
    together = entry["splits"]["all"]["official"]
    assert {name: metric["value"] for name, metric in together.items()} == {
        "closed_ended": 100,
        "creative_writing": 50,
        "cot": 50,
        "if_rate": pytest.approx(200 / 3),
    }
    made = tmp_path / "out/speech_ifeval/predictions.jsonl"
    alone = run("speech_ifeval", tmp_path / "alone", predictions=made)
    assert alone["splits"] == entry["splits"]
    assert "judgement" in next(row for row in json_lines(made) if row["split"] == "cot")

    # A reference may be the scores of a run, or what it predicted: against itself, nothing is forgotten.
    for reference in (tmp_path / "out/scores.json", made):
        again = run(
            *("speech_ifeval", tmp_path / "again", data),
            endpoint=stub.url,
            judge={"endpoint": stub.url},
            speech_ifeval={"reference": reference},
        )
        assert again["splits"]["all"]["official"]["delta"]["value"] == pytest.approx(0)
        assert again["settings"]["reference"] == str(reference)
    told = json_lines(tmp_path / "again/speech_ifeval/predictions.jsonl")[0]["reference_if_rate"]
    assert told == {"official": pytest.approx(200 / 3), "strict": pytest.approx(200 / 3)}
    # The predictions know the reference.
    alone = run("speech_ifeval", tmp_path / "b", predictions=tmp_path / "again/speech_ifeval/predictions.jsonl")
    assert alone["splits"] == again["splits"]


def test_delta_is_the_share_that_was_lost(data: Path, tmp_path: Path) -> None:
    rates = {"official": {"if_rate": {"value": 50.0}}, "strict": {"if_rate": {"value": 80.0}}}
    write_json(tmp_path / "scores.json", {"speech_ifeval": {"splits": {"all": rates}}})
    found = scored("speech_ifeval", answers(data, reference=str(tmp_path / "scores.json")))
    assert found["official"]["delta"] == pytest.approx(100 * (100 / 3 - 50) / 50)
    assert found["strict"]["delta"] == pytest.approx(100 * (200 / 3 - 80) / 80)


def test_a_text_model_is_asked_with_the_words_in_place_of_the_recording(stub: Any, data: Path, tmp_path: Path) -> None:
    run("speech_ifeval", tmp_path / "out", data, endpoint=stub.url, modality="metadata")
    asked = [request["messages"] for request in stub.requests]
    assert all(turns[0] == {"role": "system", "content": "Follow the given instructions."} for turns in asked)
    assert [turns[1]["content"] for turns in asked if "story" in turns[1]["content"]] == [
        "Speech Input: [00:00 - 00:01] Speech/a.flac(Gender: Female)\n\nA story of few words."
    ]


def test_a_missing_recording_is_an_error_row_a_question(stub: Any, data: Path, tmp_path: Path) -> None:
    (data / "audios/Gender/c.wav").rename(data / "audios/Speech/c.wav")  # of this name, but in another folder
    entry = run("speech_ifeval", tmp_path / "out", data, endpoint=stub.url)
    assert (entry["answered"], entry["errors"]) == (4, 2)
    assert "Gender/c.wav" in json_lines(tmp_path / "out/speech_ifeval/errors.jsonl")[0]["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction_id_list": "startend:quotation"}, "row 2: instruction_id_list: must be a list of instructions"),
        ({"instruction_id_list": []}, "row 2: instruction_id_list: must be a list of instructions"),
        ({"instruction_id_list": ["startend:postscript"]}, "row 2: instruction_id_list: no rule for 'startend:posts"),
        ({"kwargs": []}, "row 2: kwargs: must be a list of 1"),
        ({"kwargs": [{"num_words": "three"}]}, "row 2: instruction_id_list: .*: num_words: must be a number"),
        ({"textual_audio": None}, "row 2: textual_audio: missing"),
        ({"id": 2}, "row 2: id: '2' stands in row 1 already"),
        ({"instruction": 7}, "row 2: instruction: should be text, is 7"),
    ],
)
def test_a_bad_row_is_named(data: Path, change: dict[str, Any], message: str) -> None:
    write_json_lines(data / "eval_data/creative_writing.jsonl", [CREATIVE[0], CREATIVE[1] | change])
    with pytest.raises(UserError, match=f"creative_writing.jsonl: {message}"):
        speech_ifeval.read(data)


def test_a_missing_file_is_named(data: Path) -> None:
    (data / "eval_data/chain-of-thought.jsonl").unlink()
    with pytest.raises(UserError, match=r"no chain-of-thought.jsonl there"):
        speech_ifeval.read(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "no if_rate of speech_ifeval in split all: it takes all three splits and a judge"),
        ({"speech_ifeval": {"splits": {"all": {"official": {}}}}}, "no if_rate"),
        (
            {
                "speech_ifeval": {
                    "splits": {"all": {block: {"if_rate": {"value": 0}} for block in ("official", "strict")}}
                }
            },
            "nothing was followed there",
        ),
    ],
)
def test_a_reference_that_has_no_rate_is_refused(data: Path, tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=f"speech_ifeval.reference: .*{message}"):
        speech_ifeval.plan(speech_ifeval.read(data), 0, reference=str(path))


def test_predictions_without_a_judge_are_no_reference(stub: Any, data: Path, tmp_path: Path) -> None:
    run("speech_ifeval", tmp_path / "out", data, endpoint=stub.url)
    made = tmp_path / "out/speech_ifeval/predictions.jsonl"
    with pytest.raises(UserError, match="has to have all three splits and judgements of cot"):
        speech_ifeval.plan(speech_ifeval.read(data), 0, reference=str(made))


def test_predictions_without_instructions_are_refused() -> None:
    question = Question("q", "closed_ended", ({"id": "a", "audio": "a"},), "?", "")
    with pytest.raises(UserError, match="q: instruction_id_list: must be a list"):
        scored("speech_ifeval", [Answer(question, "rain")])
