import base64
import io
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile

from balsa_ray.config import UserError
from balsa_ray.evaluation.answers import AnswerFile
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.runner import benchmark


def configured(output: Path, **keys: Any) -> BenchmarkConfig:
    return BenchmarkConfig.model_validate({"output": output, "tasks": ["existence"], "resamples": 20} | keys)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSA_API_KEY", raising=False)
    monkeypatch.setattr("balsa_ray.endpoint._LONGEST_PAUSE_S", 0.01)


def test_a_run_asks_every_question_and_scores_the_replies(stub, manifest: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "out", tasks=["existence", "describe", "which_recording"], data_root=manifest,
                        endpoint=stub.url)  # fmt: skip
    scores = benchmark(config)
    predictions = rows(tmp_path / "out/existence/predictions.jsonl")
    assert {"id", "audio", "prompt", "response", "parsed", "reference", "correct"} <= set(predictions[0])
    assert [(p["parsed"], p["correct"]) for p in predictions] == [("yes", p["reference"] == "yes") for p in predictions]
    for split in ("random", "popular", "adversarial"):
        entry = scores["existence"]["splits"][split]
        assert entry["strict"]["accuracy"]["value"] == entry["official"]["accuracy"]["value"] == 50
        assert entry["strict"]["yes_rate"] == {"value": 100, "low": 100, "high": 100, "n": entry["n"]}
    assert json.loads((tmp_path / "out/scores.json").read_text()) == scores
    assert scores["existence"]["model"]["fingerprint"] == "weights-of-stub"
    assert "weights-of-stub" in (tmp_path / "out/report.html").read_text()
    assert scores["which_recording"]["splits"]["all"]["strict"]["unparsed"]["value"] == 100
    assert isinstance(rows(tmp_path / "out/which_recording/predictions.jsonl")[0]["audio"], list)
    # Equal questions of two splits are asked once.
    assert len(stub.requests) < sum(entry["answered"] for entry in scores.values())
    assert stub.requests[0]["temperature"] == 0


def test_clips_are_sent_byte_for_byte_in_the_order_of_the_question(stub, manifest: Path, tmp_path: Path) -> None:
    benchmark(configured(tmp_path / "out", tasks=["which_recording"], data_root=manifest, endpoint=stub.url))
    sent = {tuple(part["input_audio"]["data"] for part in r["messages"][0]["content"][:-1]) for r in stub.requests}
    wanted = set()
    for prediction in rows(tmp_path / "out/which_recording/predictions.jsonl"):
        wanted.add(tuple(base64.b64encode(Path(path).read_bytes()).decode() for path in prediction["audio"]))
    assert sent == wanted
    assert stub.requests[0]["messages"][0]["content"][0]["input_audio"]["format"] == "flac"


def test_a_slice_is_cut_without_changing_its_samples(stub, manifest: Path, tmp_path: Path) -> None:
    row = json.loads(manifest.read_text().splitlines()[0]) | {"start": 0.05, "duration": 0.04}
    manifest.write_text(json.dumps(row) + "\n")
    benchmark(configured(tmp_path / "out", tasks=["describe"], data_root=manifest, endpoint=stub.url))
    part = stub.requests[0]["messages"][0]["content"][0]["input_audio"]
    sent, rate = soundfile.read(io.BytesIO(base64.b64decode(part["data"])), dtype="int16")
    whole, _ = soundfile.read(tmp_path / "0.flac", dtype="int16")
    assert (part["format"], rate) == ("wav", 16_000)
    assert (sent == whole[800:1440]).all()


def test_metadata_takes_the_place_of_audio(stub, manifest: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "out", tasks=["which_recording"], data_root=manifest, endpoint=stub.url,
                        modality="metadata")  # fmt: skip
    scores = benchmark(config)
    text = stub.requests[0]["messages"][0]["content"]
    lines = text.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("[Begin of audio] ") and line.endswith(" [End of audio]") for line in lines[:2])
    assert scores["which_recording"]["modality"] == "metadata: tags"


def test_refusals_that_pass_are_tried_again(stub, manifest: Path, tmp_path: Path) -> None:
    faults = iter([(429, {"Retry-After": "0"}, b"busy"), (503, {}, b"starting"), None] * 2)
    stub.respond = lambda _: next(faults, stub.says("No."))
    scores = benchmark(configured(tmp_path / "out", data_root=manifest, endpoint=stub.url, concurrency=2))
    assert scores["existence"]["errors"] == 0


def test_a_refused_question_is_an_error_row_and_is_asked_again(stub, manifest: Path, tmp_path: Path, capsys) -> None:
    def respond(request: dict[str, Any]) -> Any:
        prompt = request["messages"][0]["content"][-1]["text"]
        if "flute" in prompt:
            return 400, {}, b'{"error": {"message": "no flutes here"}}'
        return (200, {}, b"<html>") if "typing" in prompt else stub.says("No.")

    stub.respond = respond
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url)
    scores = benchmark(config)
    failed = rows(tmp_path / "out/existence/errors.jsonl")
    assert scores["existence"]["errors"] == len(failed) > 0
    assert {row["error"][:8] for row in failed} == {"400: no ", "the repl"}
    assert "errors.jsonl" in capsys.readouterr().out
    assert all("flute" not in row["prompt"] for row in rows(tmp_path / "out/existence/predictions.jsonl"))

    first = len(stub.requests)
    stub.respond = lambda _: stub.says("No.")
    again = benchmark(config)
    assert again["existence"]["errors"] == 0
    assert len(stub.requests) - first == len({(tuple(r["audio"]), r["prompt"]) for r in failed})
    assert rows(tmp_path / "out/existence/errors.jsonl") == []


def test_a_finished_run_asks_nothing_and_another_model_everything(stub, manifest: Path, tmp_path, capsys) -> None:
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url)
    scores, asked = benchmark(config), len(stub.requests)
    assert benchmark(config) == scores
    assert len(stub.requests) == asked
    assert f"{scores['existence']['answered']} of them by earlier replies" in capsys.readouterr().out
    stub.models = ["retrained"]
    benchmark(config)
    assert len(stub.requests) == 2 * asked


def test_an_endpoint_that_dies_ends_the_run_and_the_same_command_goes_on(stub, manifest: Path, tmp_path: Path) -> None:
    stub.respond = lambda _: stub.says("Yes.") if len(stub.requests) <= 20 else None
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url, attempts=2, concurrency=1)
    with pytest.raises(UserError, match="answers nobody any more") as stopped:
        benchmark(config)
    assert stopped.value.exit_code == 1
    assert not (tmp_path / "out/scores.json").exists()
    answers = tmp_path / "out/answers.jsonl"
    kept = len(answers.read_text().splitlines())
    answers.write_bytes(answers.read_bytes()[:-5])  # as if killed while the last line was written
    asked = len(stub.requests)
    stub.respond = lambda _: stub.says("Yes.")
    interrupted = benchmark(config)
    whole = benchmark(configured(tmp_path / "whole", data_root=manifest, endpoint=stub.url))
    assert interrupted == whole
    assert len(set(map(json.dumps, stub.requests))) == len(stub.requests[asked:]) / 2 + (kept - 1) / 2


def test_a_question_that_always_fails_is_an_error_of_its_own(stub, manifest: Path, tmp_path: Path) -> None:
    fine = stub.says("Yes.")

    def respond(request: dict[str, Any]) -> Any:
        return (500, {}, b"") if "noticed the sound of flute" in json.dumps(request) else fine

    stub.respond = respond
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url, attempts=2, concurrency=1)
    first = benchmark(config)["existence"]
    assert 0 < first["errors"] < 20
    assert rows(tmp_path / "out/existence/errors.jsonl")[0]["error"].startswith("2 tries failed, the last with 500")
    assert benchmark(config)["existence"] == first  # and again, where nothing else is asked


@pytest.mark.parametrize("content", [[{"type": "text", "text": "Yes."}], 7])
def test_a_reply_that_is_no_text_is_not_kept(stub, manifest: Path, tmp_path: Path, content: Any) -> None:
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    stub.respond = lambda _: (200, {}, body)
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url)
    with pytest.raises(UserError, match="nothing was answered") as stopped:
        benchmark(config)
    assert stopped.value.exit_code == 1
    stub.respond = lambda _: stub.says("Yes.")
    assert benchmark(config)["existence"]["errors"] == 0


@pytest.mark.parametrize("reply", ["Yes \ud83d", "Yes\u2028no\u0085."])
def test_any_text_is_kept_and_read_again(stub, manifest: Path, tmp_path: Path, reply: str) -> None:
    stub.respond = lambda _: stub.says(reply)
    run = tmp_path / "out"
    scores = benchmark(configured(run, data_root=manifest, endpoint=stub.url))["existence"]
    asked = len(stub.requests)
    assert benchmark(configured(run, data_root=manifest, endpoint=stub.url))["existence"] == scores
    assert len(stub.requests) == asked
    of_file = configured(tmp_path / "again", predictions=run / "existence/predictions.jsonl", data_root=manifest)
    assert benchmark(of_file)["existence"]["splits"] == scores["splits"]


def test_replies_that_are_drawn_are_each_seeds_own(stub, manifest: Path, tmp_path: Path) -> None:
    def ask(seed: int) -> list[int]:
        before = len(stub.requests)
        sampling = {"temperature": 0.7}
        keys = {"tasks": ["describe"], "seed": seed, "sampling": sampling, "describe": {"labels": "manifest"}}
        benchmark(configured(tmp_path / "out", data_root=manifest, endpoint=stub.url, **keys))
        return [request["seed"] for request in stub.requests[before:]]

    first, other = ask(0), ask(1)
    assert len(set(first + other)) == len(first) + len(other)
    assert ask(0) == []


def test_two_runs_do_not_write_to_one_file_of_answers(stub, manifest: Path, tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "out/answers.jsonl"), pytest.raises(UserError, match="another run is writing there"):
        benchmark(configured(tmp_path / "out", data_root=manifest, endpoint=stub.url))


def test_a_manifest_may_lie_in_a_folder_of_its_tasks_name(stub, manifest: Path, tmp_path: Path) -> None:
    scores = benchmark(configured(tmp_path / "out", data_root=manifest, endpoint=stub.url))
    for name in ("existence", "describe"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for file in [manifest, *tmp_path.glob("*.flac")]:
            shutil.copy(file, tmp_path / "root" / name)
    root = configured(tmp_path / "all", tasks=["existence", "describe"], data_root=tmp_path / "root", endpoint=stub.url)
    assert benchmark(root)["existence"]["splits"] == scores["existence"]["splits"]
    (tmp_path / "root/existence/other.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="should hold one manifest"):
        benchmark(root)


def test_answers_to_other_questions_under_the_same_ids_are_named_and_not_scored(stub, manifest: Path, tmp_path) -> None:
    run = tmp_path / "out"
    benchmark(configured(run, data_root=manifest, endpoint=stub.url))
    answers = rows(run / "existence/predictions.jsonl")
    answers[0]["reference"] = {"yes": "no", "no": "yes"}[answers[0]["reference"]]
    answers[1]["audio"], answers[1]["clips"] = "other.wav", ["other"]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in answers))
    entry = benchmark(configured(tmp_path / "scored", data_root=manifest, predictions=file))["existence"]
    assert entry["mismatched"] == sorted(row["id"] for row in answers[:2])
    assert entry["answered"] == len(answers) - 2
    assert (entry["decoding"], entry["modality"], entry["templates"]) == (None, None, None)
    assert entry["predictions"]["path"] == str(file)
    assert len(rows(tmp_path / "scored/existence/predictions.jsonl")) == len(answers) - 2
    file.write_text("".join(json.dumps(row | {"audio": "other.wav", "clips": ["x"]}) + "\n" for row in answers))
    with pytest.raises(UserError, match="recordings or right answers aren't those of this plan"):
        benchmark(configured(tmp_path / "none", data_root=manifest, predictions=file))


def test_a_missing_clip_is_counted_and_named(stub, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "2.flac").unlink()
    scores = benchmark(configured(tmp_path / "out", data_root=manifest, endpoint=stub.url))
    failed = rows(tmp_path / "out/existence/errors.jsonl")
    assert {row["audio"][0] for row in failed} == {str(tmp_path / "2.flac")}
    assert scores["existence"]["errors"] == len(failed) == 30
    assert "2.flac" in failed[0]["error"]


def test_the_key_and_the_name_must_fit(stub, manifest: Path, tmp_path: Path, monkeypatch) -> None:
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url)
    stub.models = ["one", "two"]
    with pytest.raises(UserError, match="choose one of one, two"):
        benchmark(config)
    with pytest.raises(UserError, match="no model 'three'"):
        benchmark(config.model_copy(update={"name": "three"}))
    stub.key = "secret"
    with pytest.raises(UserError, match="BALSA_API_KEY"):
        benchmark(config)
    monkeypatch.setenv("BALSA_API_KEY", "secret")
    assert benchmark(config.model_copy(update={"name": "two"}))["existence"]["model"]["name"] == "two"
    with pytest.raises(UserError, match="nobody answers"):
        benchmark(config.model_copy(update={"endpoint": "http://127.0.0.1:9"}))


def test_limit_keeps_clips_and_a_larger_limit_adds_to_them(stub, manifest: Path, tmp_path: Path) -> None:
    seen = []
    for limit in (2, 4):
        benchmark(configured(tmp_path / str(limit), data_root=manifest, endpoint=stub.url, limit=limit))
        seen.append({row["clips"][0] for row in rows(tmp_path / f"{limit}/existence/predictions.jsonl")})
    assert [len(clips) for clips in seen] == [2, 4]
    assert seen[0] < seen[1]


def test_predictions_are_scored_without_asking(stub, manifest: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "out", data_root=manifest, endpoint=stub.url)
    scores = benchmark(config)
    made, asked = tmp_path / "out/existence/predictions.jsonl", len(stub.requests)
    alone = benchmark(configured(tmp_path / "alone", predictions=made))
    assert alone["existence"]["splits"] == scores["existence"]["splits"]
    assert len(stub.requests) == asked

    changed = rows(made)
    changed[0]["id"] = "of another plan"
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, changed)))
    against = benchmark(configured(tmp_path / "against", predictions=other, data_root=manifest))
    assert against["existence"]["extra"] == ["of another plan"]
    assert against["existence"]["missing"] == [rows(made)[0]["id"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"id": "1", "audio": "a", "prompt": "p", "response": "yes"}', "reference: missing"),
        ('{"id": "1", "audio": "a", "prompt": "p", "response": 1, "reference": "yes"}', "response: must be text"),
        ('{"id": "0", "audio": "a", "prompt": "p", "response": "yes", "reference": "yes"}', "stands twice"),
        ('{"id": "1", "audio": "a", "prompt": "p", "response": "yes", "reference": "perhaps"}', "'perhaps'"),
        ('{"id": "1", "audio": "", "prompt": "p", "response": "yes", "reference": "yes"}', "audio: must be a path"),
        ('{"id": "1", "audio": null, "prompt": "p", "response": "yes", "reference": "yes"}', "audio: must be a path"),
        (
            '{"id": "1", "audio": "a", "clips": [], "choices": 3, "prompt": "p", "response": "", "reference": "no"}',
            "choices: ",
        ),
        (
            '{"id": "1", "audio": "a", "clips": ["a", "b"], "prompt": "p", "response": "", "reference": "no"}',
            "clips: must be 1",
        ),
        (
            '{"id": "1", "audio": "a", "also": "all", "prompt": "p", "response": "", "reference": "no"}',
            "also: must be a list",
        ),
        (
            '{"id": "1", "audio": "a", "judgement": 1, "prompt": "p", "response": "", "reference": "no"}',
            "judgement: must be",
        ),
    ],
)
def test_a_bad_predictions_file_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "predictions.jsonl"
    good = {"id": "0", "audio": "a", "prompt": "p", "response": "Yes.", "reference": "yes"}
    file.write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        benchmark(configured(tmp_path / "out", predictions=file))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "set one of endpoint, model, predictions and compare, not none"),
        ({"endpoint": "http://x", "predictions": "y"}, "not endpoint and predictions"),
        ({"endpoint": "http://x", "model": "m", "data_root": "d"}, r"not endpoint and model \(KEY=null"),
        ({"endpoint": "http://x"}, "data_root: missing"),
        ({"model": "m"}, "data_root: missing"),
        ({"endpoint": "x:1", "data_root": "d"}, "must begin with http"),
    ],
)
def test_a_configuration_without_one_to_answer_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(Path("out"), **keys)


def test_a_busy_endpoint_is_asked_as_much_as_it_can_take(stub, manifest: Path, tmp_path: Path) -> None:
    under_way, most, refused, lock = 0, 0, 0, threading.Lock()

    def respond(_: dict[str, Any]) -> Any:
        nonlocal under_way, most, refused
        with lock:
            if under_way >= 4:
                refused += 1
                return 429, {}, b"{}"
            under_way += 1
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return stub.says("No.")

    stub.respond = respond
    scores = benchmark(configured(tmp_path / "out", data_root=manifest, endpoint=stub.url, concurrency=64, attempts=9))
    assert scores["existence"]["errors"] == 0
    # Without fewer requests at once each of 60 would be refused again and again.
    assert refused < scores["existence"]["answered"]


def test_parts_are_asked_apart_and_scored_together(stub, manifest: Path, tmp_path: Path) -> None:
    keys = {"tasks": ["existence", "describe"], "data_root": manifest, "endpoint": stub.url}
    whole = benchmark(configured(tmp_path / "whole", **keys))
    asked = sorted(stub.prompts())
    stub.requests.clear()
    for part in (1, 2, 3):
        assert benchmark(configured(tmp_path / "parts", **keys, shard=f"{part}/3")) == {}
    assert not (tmp_path / "parts/scores.json").exists()
    assert sorted(stub.prompts()) == asked
    assert benchmark(configured(tmp_path / "parts", **keys)) == whole
    assert sorted(stub.prompts()) == asked


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shard": "4/3", "endpoint": "http://x", "data_root": "x"}, "there are only 3 parts"),
        ({"shard": "0/3", "endpoint": "http://x", "data_root": "x"}, "pattern"),
        ({"shard": "1/2", "predictions": "x"}, "needs somebody to ask"),
        ({"compare": ["a"]}, "at least 2"),
    ],
)
def test_what_can_not_be_run_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(tmp_path, **keys)


def test_the_page_shows_failures_with_their_recordings_and_the_worst_labels(stub, manifest: Path, tmp_path) -> None:
    stub.respond = lambda request: stub.says("<b>Yes.</b>")
    (manifest.parent / "3.flac").unlink()
    benchmark(configured(tmp_path / "out", tasks=["existence"], data_root=manifest, endpoint=stub.url))
    page = (tmp_path / "out/report.html").read_text()
    assert "&lt;b&gt;Yes." in page
    assert "<b>Yes." not in page
    assert page.count("<audio") == 50  # of more wrong answers
    assert "Labels with the fewest right answers" in page
    markdown, latex = ((tmp_path / f"out/scores.{kind}").read_text() for kind in ("md", "tex"))
    assert "| random (official)" in markdown
    assert "\\toprule" in latex
