import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from balsa_ray.config import UserError
from balsa_ray.engine import share_cluster
from balsa_ray.serving import server
from balsa_ray.serving.config import ServeConfig

ROOT = Path(__file__).parents[2]


def configured(tmp_path: Path, **keys: Any) -> ServeConfig:
    return ServeConfig.model_validate({"output": tmp_path / "out", "model": str(tmp_path)} | keys)


@pytest.fixture(autouse=True)
def _nothing_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSA_API_KEY", raising=False)
    monkeypatch.setattr(server.cluster, "session", lambda: pytest.fail("Ray was started"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_others_are_not_served_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match="BALSA_API_KEY"):
        server.start(configured(tmp_path, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"config\.json"):  # the next thing that is wrong
        server.start(configured(tmp_path, host=host))


def test_a_missing_model_and_a_taken_port_are_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="/nowhere: no such directory"):
        server.start(configured(tmp_path, extra_models={"other": "/nowhere"}, model=str(tiny_model)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port: {port} at 127.0.0.1 is taken"):
            server.start(configured(tmp_path, model=str(tiny_model), port=port))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("port", [0, 1])
def test_an_address_that_is_not_of_this_machine_is_told_as_such(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setenv("BALSA_API_KEY", "k")
    with pytest.raises(UserError, match=f"port: {port} at 192.0.2.1 can't be used: cannot assign requested address"):
        server.start(configured(tmp_path, model=str(tiny_model), host="192.0.2.1", port=port))


def test_an_output_that_is_no_folder_or_not_to_be_written_to_is_told_before_ray_starts(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, model=str(tiny_model), port=0)
    config.output.write_text("a file")
    with pytest.raises(UserError, match=r"output: .*/out: can't be a folder: file exists"):
        server.start(config)
    config.output.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)  # a test may run as root, who can write anywhere
    with pytest.raises(UserError, match=r"output: .*/out: can't be written to"):
        server.start(config)


def test_nothing_stays_up_when_server_json_cannot_be_written(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(server.cluster, "session", contextlib.nullcontext)
    monkeypatch.setattr(server, "_run", lambda *given: given[-1].callback(ended.append, "engines"))
    (tmp_path / "out" / "server.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        server.start(configured(tmp_path, model=str(tiny_model), port=0))
    assert ended == ["engines"]


def test_a_ray_serve_that_runs_already_is_not_joined(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    options = SimpleNamespace(host="0.0.0.0", port=8000)
    controller = SimpleNamespace(get_http_config=SimpleNamespace(remote=lambda: options))
    monkeypatch.setattr(server.cluster, "session", contextlib.nullcontext)
    monkeypatch.setattr(ray, "get_actor", lambda *_, **__: controller)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(server, "find_room", lambda *_: pytest.fail("went on"))
    with pytest.raises(UserError, match=r"already runs on this cluster at 0\.0\.0\.0:8000, "):
        server.start(configured(tmp_path, model=str(tiny_model), port=0))


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0", "198.51.100.7"])
def test_behind_haproxy_only_all_addresses_or_loopback_reach_the_replicas(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("BALSA_API_KEY", "k")
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setattr(server.cluster, "session", contextlib.nullcontext)
    monkeypatch.setattr(server, "_port", lambda _: 8000)
    monkeypatch.setattr(server, "_serve_address", lambda: None)
    monkeypatch.setattr(server, "find_room", lambda *_: pytest.fail("went on"))
    expected = "behind HAProxy" if host == "198.51.100.7" else "went on"
    with pytest.raises((UserError, pytest.fail.Exception), match=expected):
        server.start(configured(tmp_path, model=str(tiny_model), host=host))


def test_two_models_need_two_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose another"):
        configured(tmp_path, extra_models={"balsa": "x"})


@pytest.mark.parametrize("hears", [True, False])
def test_no_model_may_fetch_media_or_read_them_from_files(tmp_path: Path, hears: bool) -> None:
    config = configured(tmp_path)
    share = share_cluster([{"CPU": 8}], config.engine, 1)
    settings = server.engine_settings(config, server.Model("m", tmp_path, "f", hears), share)
    assert settings["engine_kwargs"]["allowed_media_domains"] == ["none.invalid"]  # to vLLM an empty list means any
    assert settings["engine_kwargs"]["allowed_local_media_path"] == ""
    assert settings["runtime_env"]["env_vars"]["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_only_a_model_that_hears_gets_the_settings_of_audio(tmp_path: Path) -> None:
    config = configured(tmp_path, engine={"max_clips": 2, "cpus": 3})
    for hears in (True, False):
        settings = server.engine_settings(
            config,
            server.Model("m", tmp_path, "f", hears, 45.0 if hears else None),
            share_cluster([{"CPU": 8}], config.engine, 1),
        )
        arguments, environment = settings["engine_kwargs"], settings["runtime_env"]["env_vars"]
        assert arguments.get("limit_mm_per_prompt") == ({"audio": 2} if hears else None)
        assert environment.get("VLLM_MEDIA_CONNECTOR") == ("balsa" if hears else None)
        assert environment.get("BALSA_MAX_AUDIO_SECONDS") == ("45" if hears else None)
        assert settings["placement_group_config"] == {"bundles": [{"CPU": 3.0}]}


def test_audio_is_fetched_from_no_host_unless_one_is_named(tmp_path: Path) -> None:
    for keys, hosts in (({}, ""), ({"allowed_audio_hosts": ["Audio.Example.", "b:81"]}, "audio.example,b:81")):
        config = configured(tmp_path, **keys)
        settings = server.engine_settings(
            config, server.Model("m", tmp_path, "f", True), share_cluster([{"CPU": 8}], config.engine, 1)
        )
        assert settings["runtime_env"]["env_vars"]["BALSA_AUDIO_HOSTS"] == hosts
        assert settings["engine_kwargs"]["allowed_media_domains"] == ["none.invalid"]
    with pytest.raises(ValueError, match=r"'http://a/' is not the name of a host"):
        configured(tmp_path, allowed_audio_hosts=["http://a/"])


def test_on_gpus_a_replica_books_one_for_each_part_of_the_model(tmp_path: Path) -> None:
    config = configured(tmp_path, engine={"tensor_parallel_size": 2})
    settings = server.engine_settings(
        config, server.Model("m", tmp_path, "f", True), share_cluster([{"CPU": 8, "GPU": 2}], config.engine, 1)
    )
    assert settings["placement_group_config"] == {"bundles": [{"CPU": 1.0, "GPU": 1.0}] * 2}
    assert settings["engine_kwargs"]["tensor_parallel_size"] == 2
    assert "OMP_NUM_THREADS" not in settings["runtime_env"]["env_vars"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    stopped = contextlib.ExitStack()
    stopped.callback(print, "drained")
    monkeypatch.setattr(server, "start", lambda *_: server.Server("http://127.0.0.1:1", [], stopped))
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
    server.serve(configured(tmp_path))
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "stopping: requests under way are finished first",
        "drained",
        "stopped",
    ]
    assert {name: signal.getsignal(name) for name in before} == before


def test_the_job_prints_one_line_for_a_mistake(tmp_path: Path) -> None:
    recipe = ROOT / "jobs/configs/miniature/serve.yaml"
    done = subprocess.run(
        [sys.executable, ROOT / "jobs/serve.py", recipe, "host=0.0.0.0", f"output={tmp_path}/out"],
        capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "BALSA_API_KEY"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: host: 0.0.0.0 can be reached by others")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ray_serve_builds_it_from_a_config_file(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import import_attr
    from ray.serve import Application

    build = import_attr("balsa_ray.serving:app")
    with pytest.raises(UserError, match="BALSA_API_KEY"):
        build({"model": str(tiny_model)})
    monkeypatch.setenv("BALSA_API_KEY", "k")
    with pytest.raises(ValueError, match="modle"):
        build({"modle": str(tiny_model)})
    with pytest.raises(UserError, match=r"engine\.device: name it"):
        build({"model": str(tiny_model)})
    assert isinstance(build({"model": str(tiny_model), "replicas": [1, 2], "engine": {"device": "cpu"}}), Application)
    # GPUs that this Ray doesn't have may come with the application.
    assert isinstance(build({"model": str(tiny_model), "engine": {"device": "gpu"}}), Application)


def test_engines_come_and_go_with_the_requests_and_the_queue_has_an_end(tmp_path: Path) -> None:
    def options(**keys: Any) -> dict[str, Any]:
        config = configured(tmp_path, engine={"max_num_seqs": 10}, **keys)
        share = share_cluster([{"CPU": 8}], config.engine, config.replica_range)
        return server.engine_settings(config, server.Model("m", tmp_path, "f", True), share)["deployment_config"]

    fixed = options(replicas=2)
    assert fixed["num_replicas"] == 2
    assert (fixed["max_ongoing_requests"], fixed["max_queued_requests"]) == (10, 2)
    scaled = options(replicas=[1, 4], max_waiting=3)
    assert scaled["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 7.0}
    assert scaled["max_queued_requests"] == 3
    with pytest.raises(ValueError, match="the least stands first"):
        configured(tmp_path, replicas=[3, 2])
