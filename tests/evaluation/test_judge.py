"""A judge, by the example of SAKURA: its judgements reach the scores, are kept, and are asked for once."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import json_lines, run, write_csv, write_recording

from balsa_ray.config import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BALSA_API_KEY", "BALSA_JUDGE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("balsa_ray.endpoint._LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips of animals; the model hears a dog in all, which is right in the first two."""
    rows = []
    for number, right in enumerate(("(a) dog", "(a) dog", "(b) cat")):
        file = f"{number}.wav"
        write_recording(tmp_path / "data/Animal/audio" / file)
        asked = f"Which animal is it, and number {number}? (a) dog (b) cat"
        rows.append(
            {"file": file, "attribute_label": right[4:], "single_instruction": asked, "single_answer": right}
            | {"multi_instruction": asked + " of the options", "multi_answer": right}
        )
    write_csv(tmp_path / "data/Animal/metadata.csv", rows)
    return tmp_path / "data"


@pytest.fixture
def model_and_judge(stub: Any) -> Any:
    """A stub that is both: the model says what no parser reads, and the judge takes it for a dog."""

    def respond(request: dict[str, Any]) -> Any:
        asked = request["messages"][0]["content"]
        if not isinstance(asked, str):
            return stub.says("It barks, clearly.")
        verdict = "correct" if "Right option: (a) dog" in asked else "incorrect"
        return stub.says(f"Explanation: it barks.\nJudgement: {verdict}")

    stub.respond = respond
    return stub


def judged(stub: Any) -> list[str]:
    """The prompts that the judge was asked."""
    contents = [request["messages"][0]["content"] for request in stub.requests]
    return [content for content in contents if isinstance(content, str)]


def test_judgements_reach_the_scores_and_the_predictions(model_and_judge: Any, data: Path, tmp_path: Path) -> None:
    entry = run("sakura", tmp_path / "out", data, endpoint=model_and_judge.url, judge={"endpoint": model_and_judge.url})
    single = entry["splits"]["animal single"]
    assert single["official"]["accuracy"]["value"] == pytest.approx(200 / 3)
    assert single["strict"]["unparsed"]["value"] == 100
    assert entry["judge"]["fingerprint"] == "weights-of-stub"
    predictions = json_lines(tmp_path / "out/sakura/predictions.jsonl")
    assert {row["judgement"].partition("Judgement: ")[2] for row in predictions} == {"correct", "incorrect"}
    # The file tells all that a scorer needs, with no judge at hand.
    alone = run("sakura", tmp_path / "alone", predictions=tmp_path / "out/sakura/predictions.jsonl")
    assert alone["splits"] == entry["splits"]
    assert alone["judge"] is None


def test_nothing_is_judged_twice_and_another_judge_judges_all(model_and_judge: Any, data: Path, tmp_path: Path) -> None:
    keys = {"endpoint": model_and_judge.url, "judge": {"endpoint": model_and_judge.url}}
    first = run("sakura", tmp_path / "out", data, **keys)
    assert len(judged(model_and_judge)) == len(json_lines(tmp_path / "out/judgements.jsonl")) == 6
    assert run("sakura", tmp_path / "out", data, **keys) == first
    assert len(judged(model_and_judge)) == 6
    warmer = keys | {"judge": keys["judge"] | {"sampling": {"temperature": 0.5}}}
    run("sakura", tmp_path / "out", data, **warmer)
    assert len(judged(model_and_judge)) == 12


def test_equal_replies_to_one_question_are_judged_once(model_and_judge: Any, tmp_path: Path) -> None:
    row = {"prompt": "What is it? (a) dog (b) cat", "response": "a dog", "reference": "(a) dog"}
    lines = [json.dumps(row | {"id": name, "audio": f"{name}.wav"}) for name in ("1", "2")]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    entry = run("sakura", tmp_path / "out", predictions=tmp_path / "p.jsonl", judge={"endpoint": model_and_judge.url})
    assert len(judged(model_and_judge)) == 1
    assert entry["splits"]["all"]["official"]["accuracy"] == {"value": 100, "low": 100, "high": 100, "n": 2}


def test_without_a_judge_its_figures_are_absent(model_and_judge: Any, data: Path, tmp_path: Path) -> None:
    entry = run("sakura", tmp_path / "out", data, endpoint=model_and_judge.url)
    assert judged(model_and_judge) == []
    assert entry["judge"] is None
    assert all("official" not in of_split for of_split in entry["splits"].values())
    assert "judgement" not in json_lines(tmp_path / "out/sakura/predictions.jsonl")[0]


def test_a_refused_judgement_is_an_error_row_that_the_same_command_tries_again(
    model_and_judge: Any, data: Path, tmp_path: Path
) -> None:
    answering = model_and_judge.respond

    def respond(request: dict[str, Any]) -> Any:
        asked = request["messages"][0]["content"]
        if isinstance(asked, str) and "number 1? (a) dog (b) cat\n" in asked:
            return 400, {}, b'{"error": {"message": "I would rather not"}}'
        return answering(request)

    model_and_judge.respond = respond
    keys = {"endpoint": model_and_judge.url, "judge": {"endpoint": model_and_judge.url}}
    entry = run("sakura", tmp_path / "out", data, **keys)
    (failed,) = json_lines(tmp_path / "out/sakura/errors.jsonl")
    assert failed["id"] == "animal/1.wav/single"
    assert failed["error"] == "judge: 400: I would rather not"
    assert (entry["answered"], entry["errors"], entry["unjudged"]) == (6, 0, 1)
    single = entry["splits"]["animal single"]
    assert single["official"]["accuracy"]["n"] == single["strict"]["accuracy"]["n"] - 1

    model_and_judge.respond = answering
    asked = len(model_and_judge.requests)
    again = run("sakura", tmp_path / "out", data, **keys)
    assert (again["answered"], again["errors"], again["unjudged"]) == (6, 0, 0)
    assert len(model_and_judge.requests) == asked + 1
    assert json_lines(tmp_path / "out/sakura/errors.jsonl") == []


def test_a_refused_judgement_of_a_file_of_answers_is_an_error_row_too(
    model_and_judge: Any, data: Path, tmp_path: Path
) -> None:
    run("sakura", tmp_path / "answers", data, endpoint=model_and_judge.url)
    model_and_judge.respond = lambda _: (400, {}, b'{"error": {"message": "no"}}')
    answers = tmp_path / "answers/sakura/predictions.jsonl"
    entry = run("sakura", tmp_path / "out", predictions=answers, judge={"endpoint": model_and_judge.url})
    assert (entry["answered"], entry["unjudged"]) == (6, 6)
    assert "official" not in entry["splits"]["all"]
    assert {row["error"] for row in json_lines(tmp_path / "out/sakura/errors.jsonl")} == {"judge: 400: no"}


def test_a_judge_that_can_not_be_asked_is_named_in_one_line(
    model_and_judge: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"predictions": tmp_path / "answers/sakura/predictions.jsonl"}
    run("sakura", tmp_path / "answers", data, endpoint=model_and_judge.url)
    model_and_judge.key = "secret"
    monkeypatch.setenv("BALSA_API_KEY", "secret")  # that of the model is never sent to the judge
    with pytest.raises(UserError, match=r"^judge: .* refuses the key \(401\): set BALSA_JUDGE_API_KEY$") as refused:
        run("sakura", tmp_path / "out", **answers, judge={"endpoint": model_and_judge.url})
    assert refused.value.exit_code == 1
    monkeypatch.setenv("BALSA_JUDGE_API_KEY", "secret")
    run("sakura", tmp_path / "out", **answers, judge={"endpoint": model_and_judge.url})
    with pytest.raises(UserError, match=r"^judge: name: the endpoint has no model 'other', only stub$"):
        run("sakura", tmp_path / "out", **answers, judge={"endpoint": model_and_judge.url, "name": "other"})
    with pytest.raises(UserError, match=r"^judge: endpoint: nobody answers at http://127\.0\.0\.1:9"):
        run("sakura", tmp_path / "out", **answers, judge={"endpoint": "http://127.0.0.1:9"})


def test_a_key_that_is_refused_midway_ends_the_run_and_keeps_what_was_judged(
    model_and_judge: Any, data: Path, tmp_path: Path
) -> None:
    answering = model_and_judge.respond

    def respond(request: dict[str, Any]) -> Any:
        if len(judged(model_and_judge)) > 2:
            return 403, {}, b'{"error": {"message": "the key has expired"}}'
        return answering(request)

    model_and_judge.respond = respond
    keys = {"endpoint": model_and_judge.url, "judge": {"endpoint": model_and_judge.url, "concurrency": 1}}
    with pytest.raises(UserError, match=r"judge: .*403: the key has expired\): set BALSA_JUDGE_API_KEY"):
        run("sakura", tmp_path / "out", data, **keys)
    assert len(json_lines(tmp_path / "out/judgements.jsonl")) == 2
    model_and_judge.respond = answering
    assert run("sakura", tmp_path / "out", data, **keys)["answered"] == 6
    assert len(judged(model_and_judge)) == 3 + 4


def test_runs_of_which_one_was_judged_are_compared_in_the_rest(
    model_and_judge: Any, data: Path, tmp_path: Path
) -> None:
    run("sakura", tmp_path / "a", data, endpoint=model_and_judge.url, judge={"endpoint": model_and_judge.url})
    run("sakura", tmp_path / "b", data, endpoint=model_and_judge.url)
    for runs in (["a", "b"], ["b", "a"]):
        (entry,) = run("sakura", tmp_path / "out", compare=[tmp_path / name for name in runs])
        assert entry["splits"]["all"]["strict"]["unparsed"]["difference"]["value"] == 0
        assert not entry["splits"]["all"].get("official")
