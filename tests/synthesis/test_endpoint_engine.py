"""Synthesis through an OpenAI-compatible endpoint: vLLM's own server, and faults of one."""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from tiny_models import TinyCheckpoints

from balsa_ray.config import UserError
from balsa_ray.engine import EngineConfig, cpu_environment
from balsa_ray.preflight import free_ports
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.output import row_files
from balsa_ray.synthesis.pipeline import synthesize

KEY = secrets.token_hex(16)


@pytest.fixture(scope="module")
def server(tiny_checkpoints: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server with the tiny LLM; it is named as the folder is called."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_checkpoints.text,
               "--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager",
               "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]  # fmt: skip
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    environment = os.environ | cpu_environment(EngineConfig())
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{url}/health"):
            assert process.poll() is None, Path(log.name).read_text()[-2000:]
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()
        log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def config(folder: Path, output: str, **keys: Any) -> SynthesizeConfig:
    clips = [{"id": f"c{i}", "audio": f"{i}.wav", "tags": ["rain", "siren"][: 1 + i % 2]} for i in range(12)]
    (folder / "clips.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    values = {
        "output": folder / output,
        "input": folder / "clips.jsonl",
        "audio_check": "none",
        "sampling": {"max_tokens": 12},
        "engine": {"dtype": "float32", "max_model_len": 512},
    }
    return SynthesizeConfig.model_validate(values | keys)


def replies(output: Path) -> dict[tuple[str, ...], tuple[Any, ...]]:
    rows = [row for file in row_files(output) for row in parquet.read_table(file).to_pylist()]
    columns = ("response", "prompt_tokens", "response_tokens", "finish_reason", "gate")
    return {(row["prompt_id"], *row["clip_ids"]): tuple(row.get(name) for name in columns) for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_endpoint_writes_what_the_engine_writes(
    server: str, tiny_checkpoints: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALSA_API_KEY", KEY)
    asked = config(tmp_path, "asked", endpoint={"url": server, "requests_per_second": 200})
    report = synthesize(asked)
    assert report["provenance"]["model"] == f"tiny at {server}/v1"
    assert report["errors"] == {"manifest": 0, "engine": 0}
    written = synthesize(config(tmp_path, "written", model=tiny_checkpoints.text))
    assert replies(tmp_path / "asked") == replies(tmp_path / "written")
    assert report["tokens"] == written["tokens"]
    assert synthesize(asked) == report  # complete: nobody is asked again


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_question_that_is_refused_is_an_error_row(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALSA_API_KEY", KEY)
    settings = config(tmp_path, "out", endpoint={"url": server}, kinds={"present": 1})
    with (tmp_path / "clips.jsonl").open("a") as file:
        file.write(json.dumps({"id": "long", "audio": "l.wav", "tags": ["rain " * 600]}) + "\n")
    report = synthesize(settings)
    assert report["errors"] == {"manifest": 0, "engine": 1}
    (error,) = parquet.read_table(tmp_path / "out" / "errors").to_pylist()
    assert error["clip_ids"] == ["long"]
    assert error["error"].startswith("400: ")


def test_a_refused_key_and_a_silent_endpoint_are_told_before_anything_starts(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALSA_API_KEY", "wrong")
    with pytest.raises(UserError, match="refuses the key"):
        synthesize(config(tmp_path, "out", endpoint={"url": server}))
    with pytest.raises(UserError, match="nobody answers"):
        synthesize(config(tmp_path, "out", endpoint={"url": "http://127.0.0.1:1"}))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="either the backbone or, with model=null, an endpoint"):
        config(tmp_path, "out")
