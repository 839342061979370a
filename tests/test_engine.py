import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyCheckpoints

from balsa_ray import engine
from balsa_ray.config import UserError
from balsa_ray.engine import (
    EngineConfig,
    SamplingConfig,
    chat_tokens,
    check_chat_template,
    failure,
    find_room,
    rows_per_block,
    sampling_params,
    share_cluster,
)


def test_a_request_names_top_k_only_if_it_is_set() -> None:
    assert SamplingConfig(max_tokens=9).request_fields() == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 9}
    assert SamplingConfig(top_k=5).request_fields()["top_k"] == 5


@pytest.mark.parametrize("cpus", [2, 3, 8, 64])
def test_engines_leave_room_for_a_shuffle_and_for_light_tasks(cpus: int) -> None:
    share = share_cluster([{"CPU": cpus}], EngineConfig(), 1)
    assert share.bundle == {"CPU": 1.0}
    assert not share.gpu
    assert share.bundle["CPU"] + 1 <= cpus
    assert 0 < share.light_cpus <= 1
    assert 1 <= share.light_tasks <= cpus


@pytest.mark.parametrize(("rows", "block"), [(10, 256), (12_000, 256), (256_000, 1000), (1 << 30, 4096)])
def test_large_runs_have_larger_blocks(rows: int, block: int) -> None:
    assert rows_per_block(rows, 256) == block


def test_gpus_are_used_where_there_are_any() -> None:
    share = share_cluster([{"CPU": 16, "GPU": 2}] * 2, EngineConfig(tensor_parallel_size=2, cpus=2), (2, 4))
    assert (share.gpu, share.bundle, share.replicas) == (True, {"CPU": 2.0, "GPU": 1.0}, (2, 4))
    assert not share_cluster([{"CPU": 16, "GPU": 2}], EngineConfig(device="cpu"), 1).gpu


@pytest.mark.parametrize(
    ("nodes", "engine", "replicas", "reason"),
    [
        ([{"CPU": 1}], {}, 1, "Ray has 1: lower concurrency"),
        ([{"CPU": 4}], {}, 4, "are 5, and Ray has 4"),
        ([{"CPU": 4}], {"cpus": 4}, 1, "are 5, and Ray has 4"),
        ([{"CPU": 4}] * 3, {"cpus": 6}, 1, "engine.cpus: 6, and no node has more than 4"),
        ([{"CPU": 8}], {"device": "gpu"}, 1, "need 1, and Ray has 0"),
        ([{"CPU": 8, "GPU": 2}], {"tensor_parallel_size": 2}, 2, "2 replicas of 2 GPUs need 4, and Ray has 2"),
        ([{"CPU": 8}], {"tensor_parallel_size": 2}, 1, "need GPUs"),
        ([{"CPU": 0, "GPU": 1}, {"CPU": 8}], {"device": "gpu"}, 1, "need 1, and Ray has 0"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(
    nodes: list[dict[str, float]], engine: dict[str, Any], replicas: int, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        share_cluster(nodes, EngineConfig(**engine), replicas)


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """What the autoscaler is asked for, in order; looking again takes no time."""
    requests: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: requests.append(bundles))
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    return requests


def test_a_cluster_is_asked_for_machines_and_waited_for(
    asked_for: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    seen = iter([[], [{"CPU": 0.0}], [{"CPU": 8.0, "GPU": 1.0}], [{"CPU": 8.0, "GPU": 1.0}] * 2])
    monkeypatch.setattr(engine, "cluster_nodes", lambda: next(seen))
    share = find_room(EngineConfig(device="gpu", cpus=2), (2, 8))
    assert (share.gpu, share.replicas) == (True, (2, 8))
    worker = {"CPU": 2, "GPU": 1}
    # Once each time that it looks, as others ask too and the last one counts; nothing at the end.
    assert asked_for == [[worker, worker, {"CPU": 1}]] * 3 + [[]]
    assert share.light_tasks == 2 * 4, "two for the CPUs of now, and it may grow to four times as many engines"
    told = capsys.readouterr().out
    assert told.startswith("engine: 2 replicas of 1 GPUs need 2, and Ray has 0")
    assert told.endswith("Waiting for machines, 15 minutes at most\n")


def test_a_cluster_to_which_no_machines_come_is_refused(
    asked_for: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(engine, "MACHINES_SECONDS", 0.05)
    monkeypatch.setattr(engine, "cluster_nodes", lambda: [{"CPU": 1.0}])
    with pytest.raises(UserError, match="Ray has 1: lower concurrency"):
        find_room(EngineConfig(), 1)
    assert asked_for[0] == [{"CPU": 1}, {"CPU": 1}]
    assert asked_for[-1] == []


def test_a_ray_of_a_jobs_own_is_not_waited_for(
    asked_for: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engine, "cluster_nodes", lambda: [{"CPU": 1.0}])
    with pytest.raises(UserError, match="Ray has 1: lower concurrency"):
        find_room(EngineConfig(), 1)
    assert not asked_for


def test_greedy_decoding_has_no_seed_and_sampling_has_the_rows() -> None:
    assert sampling_params(SamplingConfig(max_tokens=8), 3) == {"temperature": 0.0, "max_tokens": 8}
    assert sampling_params(SamplingConfig(temperature=0.5, top_p=0.9, max_tokens=8), 3) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "max_tokens": 8,
        "seed": 3,
    }


def test_a_turn_is_tokenised_in_the_models_own_template(tiny_checkpoints: TinyCheckpoints) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints.text)
    user, system = {"role": "user", "content": "What do you hear?"}, {"role": "system", "content": "Be brief."}
    text = tokenizer.decode(chat_tokens(Path(tiny_checkpoints.text), [user]))
    assert text == "<|bos|><|user|>\nWhat do you hear?<|eos|>\n<|assistant|>\n"
    text = tokenizer.decode(chat_tokens(Path(tiny_checkpoints.text), [system, user]))
    assert text.startswith("<|bos|><|system|>\nBe brief.<|eos|>\n<|user|>\nWhat do you hear?")


def test_a_model_that_cannot_chat_is_refused(tiny_checkpoints: TinyCheckpoints, tmp_path: Path) -> None:
    check_chat_template(Path(tiny_checkpoints.text))
    for file in Path(tiny_checkpoints.text).iterdir():
        if file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no chat template"):
        check_chat_template(tmp_path)
    with pytest.raises(UserError, match="can't be read"):
        check_chat_template(tmp_path / "nowhere")


def test_the_line_about_a_failure_is_its_first_cause() -> None:
    report = """ray::MapWorker.__init__() (pid=1)
  File "core.py", line 3
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is greater than 512 [type=value_error]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""
    line = failure(RuntimeError(report))
    assert line.startswith(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, User-"
    )
    assert line.endswith("is greater than 512")
    assert failure(RuntimeError("nothing but words")) == "nothing but words"


def test_an_engine_that_keeps_dying_is_called_so() -> None:
    from ray.exceptions import ActorDiedError

    assert failure(ActorDiedError()).startswith("an engine died 4 times")
