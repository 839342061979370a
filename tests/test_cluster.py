import os
import signal
from pathlib import Path

import pytest

from balsa_ray.cluster import last_error, session, worker_environment
from balsa_ray.config import UserError


def test_workers_get_the_drivers_setting_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert worker_environment()["HF_HUB_OFFLINE"] == "1"
    assert worker_environment()["VLLM_CPU_KVCACHE_SPACE"] == "1"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert worker_environment()["VLLM_CPU_KVCACHE_SPACE"] == "4"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "no Ray answers there"),
        ("ray://localhost:1", "no Ray answers there"),
        ("somewhere", "no Ray answers there"),
        ("http://localhost:8265", "is the address for `ray job submit`"),
    ],
)
def test_cluster_that_cannot_be_reached_is_named(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=reason) as refused, session():
        pass
    assert str(refused.value).startswith(f"RAY_ADDRESS={address}: ")


def test_cluster_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError) as refused, session():
        pass
    told = "RAY_ADDRESS=auto: Version mismatch: The cluster was started with: Ray: 2.59.0 Python: 3.12.1"
    assert str(refused.value) == told


@pytest.mark.slow
def test_local_session_runs_tasks_and_leaves_the_home_alone(ray_session: None) -> None:
    import ray

    had_token = (Path.home() / ".ray" / "auth_token").exists()
    offline = ray.get(ray.remote(lambda: os.environ.get("HF_HUB_OFFLINE")).remote())
    assert offline == "1"
    assert ray.cluster_resources()["CPU"] >= 8
    assert (Path.home() / ".ray" / "auth_token").exists() == had_token


@pytest.mark.slow
def test_inner_session_leaves_the_outer_one_running(ray_session: None) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    with session():
        assert ray.is_initialized()
    assert ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_of_a_report_the_first_cause_is_told() -> None:
    traceback = (
        "The deployment failed to start. Error:\nRuntimeError: Traceback (most recent call last):\n"
        '  File "llm_server.py", line 211, in __init__\n    await self.start()\n'
        "RuntimeError: no engine config: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len (9000) is too large [type=value_error, input_value=Args((), {'a'...}), x]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )
    reason = "1 validation error for ModelConfig Value error, max_model_len (9000) is too large"
    assert last_error(traceback) == f"RuntimeError: no engine config: {reason}"
    assert last_error("still starting") == ""
