"""Without a server, against a server: Ray Data and vLLM give the answers that Ray Serve and vLLM give."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyCheckpoints

from balsa_ray.config import UserError
from balsa_ray.evaluation import offline
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.runner import benchmark

ENGINE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8}
AUDIO = {"tasks": ["existence", "which_recording"], "existence": {"templates": 2}}
TEXT = {"tasks": ["which_recording"], "modality": "metadata"}


def configured(output: Path, data_root: Path, **keys: Any) -> BenchmarkConfig:
    sampling = {"max_tokens": 12}
    common = {"output": output, "data_root": data_root, "sampling": sampling, "resamples": 10, "limit": 3}
    return BenchmarkConfig.model_validate(common | keys)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each engine that is started gets."""
    numbers: list[int] = []
    chain: Callable[..., Any] = offline.vllm_chain

    def counting(*args: Any, **keys: Any) -> Any:
        numbers.append(keys["rows"])
        return chain(*args, **keys)

    monkeypatch.setattr(offline, "vllm_chain", counting)
    return numbers


@pytest.mark.slow
@pytest.mark.long
def test_answers_are_those_of_the_endpoint_and_the_same_command_asks_what_is_missing(
    ray_session: None, tiny_model: Path, manifest: Path, tmp_path: Path, asked: list[int], capsys: Any
) -> None:
    from balsa_ray.serving.config import ServeConfig
    from balsa_ray.serving.server import start

    served = ServeConfig(output=tmp_path / "serving", model=str(tiny_model), port=0, engine=ENGINE)
    server = start(served)
    try:
        url = f"{server.url}/v1"
        through = benchmark(configured(tmp_path / "endpoint", manifest, endpoint=url, **AUDIO))
        benchmark(configured(tmp_path / "endpoint_text", manifest, endpoint=url, **TEXT))
    finally:
        server.stop()

    broken = Path(rows(tmp_path / "endpoint/which_recording/predictions.jsonl")[0]["audio"][0])
    sound = broken.read_bytes()
    broken.write_bytes(b"no audio at all")
    config = configured(tmp_path / "out", manifest, model=str(tiny_model), engine=ENGINE, **AUDIO)
    first = benchmark(config)
    failed = [row for task in AUDIO["tasks"] for row in rows(tmp_path / "out" / task / "errors.jsonl")]
    assert failed
    assert all(str(broken) in row["audio"] and "not readable as audio" in row["error"] for row in failed)
    assert first["existence"]["answered"] + first["which_recording"]["answered"] > 0
    assert "the same command tries them again" in capsys.readouterr().out

    broken.write_bytes(sound)
    kept = (tmp_path / "out/answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out/answers.jsonl").write_text("".join(kept[:-3]))
    again = benchmark(config)
    assert asked[1] == asked[0] - len(kept) + 3
    for task in AUDIO["tasks"]:
        name = f"{task}/predictions.jsonl"
        assert rows(tmp_path / "out" / name) == rows(tmp_path / "endpoint" / name)
        assert again[task]["splits"] == through[task]["splits"]
        assert again[task]["errors"] == 0
    assert again["existence"]["model"]["fingerprint"] == through["existence"]["model"]["fingerprint"]

    assert benchmark(config) == again
    assert len(asked) == 2  # nothing was left to ask, and no engine started

    benchmark(configured(tmp_path / "text", manifest, model=str(tiny_model), engine=ENGINE, **TEXT))
    name = "which_recording/predictions.jsonl"
    assert rows(tmp_path / "text" / name) == rows(tmp_path / "endpoint_text" / name)


@pytest.mark.slow
def test_a_plain_llm_answers_about_text_and_one_prompt_too_long_is_one_error(
    ray_session: None, tiny_checkpoints: TinyCheckpoints, manifest: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with manifest.open("a") as file:
        tags = [f"label number {i}" for i in range(60)]
        file.write(json.dumps({"id": "long", "audio": "0.flac", "tags": tags}) + "\n")
    keys = {"tasks": ["describe"], "modality": "metadata", "limit": None, "engine": ENGINE}
    config = configured(tmp_path / "out", manifest, model=tiny_checkpoints.text, **keys)
    benchmark(config)
    (long,) = rows(tmp_path / "out/describe/errors.jsonl")
    assert long["audio"] == [str(tmp_path / "0.flac")]
    assert "more than the 256 of engine.max_model_len" in long["error"]
    answers = rows(tmp_path / "out/describe/predictions.jsonl")
    assert len(answers) == 8

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints.text)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoints.text)
    clips = {clip["id"]: clip for clip in rows(manifest)}
    for answer in answers:
        heard = ", ".join(clips[answer["clips"][0]]["tags"])
        turn = {"role": "user", "content": f"[Begin of audio] {heard} [End of audio]\n{answer['prompt']}"}
        ids = tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_tensors="pt", return_dict=False)
        reply = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        # vLLM leaves out a character that was cut off at the end, transformers shows that there was one.
        wanted = tokenizer.decode(reply, skip_special_tokens=True)
        assert answer["response"].rstrip("\ufffd") == wanted.rstrip("\ufffd")


class Chain:
    """A chain whose engines are gone after so many answers, in each round."""

    def __init__(self, *answers: int) -> None:
        self._answers, self.rounds = iter(answers), []

    def __call__(self, asked: list[dict[str, Any]]) -> Any:
        self.rounds.append(len(asked))
        self._asked = asked
        return self

    def iter_batches(self, **_: Any) -> Any:
        import pyarrow as pa
        from ray.exceptions import RayError

        for row in self._asked[: next(self._answers)]:
            made = {"row": json.dumps({"key": row["key"]}), "response": "Yes.", "error": ""}
            yield pa.Table.from_pylist([made])
        raise RayError("the engine is gone")


def test_engines_that_die_for_good_are_replaced_as_long_as_answers_come(
    tiny_model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("ray.data.from_items", list)
    monkeypatch.setattr(offline, "session", nullcontext)
    config = configured(tmp_path / "out", manifest, model=str(tiny_model), **AUDIO)
    chain = Chain(5, 2, 0)
    monkeypatch.setattr(offline, "_chain", lambda *_: chain)
    with pytest.raises(UserError, match="the engine is gone; the same command goes on") as stopped:
        benchmark(config)
    assert stopped.value.exit_code == 1
    total = chain.rounds[0]
    assert chain.rounds == [total, total - 5, total - 7]
    assert len(rows(tmp_path / "out/answers.jsonl")) == 7
    assert f"going on with the {total - 7} that are left" in capsys.readouterr().out

    chain = Chain(total)
    benchmark(config)
    assert chain.rounds == [total - 7]
    assert len(rows(tmp_path / "out/answers.jsonl")) == total


def test_a_model_that_cannot_be_asked_is_refused_before_anything_is_written(
    tiny_checkpoints: TinyCheckpoints, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for model, message in (
        (tiny_checkpoints.text, "hears nothing.*set modality=metadata"),
        (str(tmp_path / "empty"), "not a model directory"),
        (str(tmp_path / "nowhere"), "no such directory"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark(configured(tmp_path / "out", manifest, model=model, **AUDIO))
    assert not (tmp_path / "out").exists()
