"""What stands in cluster/ for Ray's launcher and for KubeRay, against the schemas of those who read it."""

import functools
import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from balsa_ray.config import load
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.serving.config import ServeConfig
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
YAML_FILES = sorted(CLUSTER.rglob("*.yaml"))
LAUNCHER = sorted((CLUSTER / "ray").glob("*.yaml"))
KUSTOMIZATIONS = sorted(path.parent for path in KUBERAY.rglob("kustomization.yaml"))
OVERLAYS = sorted(path.parent for path in (KUBERAY / "overlays").glob("*/kustomization.yaml"))
JOBS = {
    "benchmark.py": BenchmarkConfig,
    "serve.py": ServeConfig,
    "synthesize.py": SynthesizeConfig,
    "train.py": TrainConfig,
}
LINT = """
extends: default
rules:
  comments: {min-spaces-from-content: 1}
  document-start: disable
  line-length: {max: 120}
"""
KUBERNETES = "1.32"
RAY = re.search(r"^ray==(\S+)$", (CLUSTER / "requirements-cpu.txt").read_text(), re.MULTILINE)[1]
KUSTOMIZE = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
needs_kustomize = pytest.mark.skipif(not shutil.which(KUSTOMIZE[0]), reason="neither kustomize nor kubectl is here")


def name(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@functools.cache
def built(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    done = subprocess.run([*KUSTOMIZE, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def ray_cluster(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pod_templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    if document["kind"] == "StatefulSet":
        return [document["spec"]["template"]]
    if document["apiVersion"] != "ray.io/v1":
        return []
    cluster = ray_cluster(document)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def values(tree: Any, key: str) -> Iterator[Any]:
    """All that stands under a key, at any depth."""
    if isinstance(tree, dict):
        yield from (value for known, value in tree.items() if known == key)
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from values(inner, key)


def check_command(command: list[str], folder: str) -> None:
    """A job's command line: the script and the recipe are there, and the recipe takes the overrides."""
    assert command[0] == "python", command
    script, recipe, *overrides = [part.removeprefix(folder) for part in command[1:]]
    assert (ROOT / script).is_file(), script
    assert (ROOT / recipe).is_file(), recipe
    assert script == f"jobs/{Path(script).name}"
    load(JOBS[Path(script).name], [str(ROOT / recipe), *overrides])


@pytest.mark.parametrize("path", YAML_FILES, ids=name)
def test_yaml_is_well_formed(path: Path) -> None:
    problems = linter.run(path.read_text(), YamlLintConfig(LINT))
    assert [f"{path}:{problem.line}: {problem.desc}" for problem in problems] == []


@pytest.mark.parametrize("path", LAUNCHER, ids=name)
def test_launcher_accepts(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # The first fills in what Ray takes for granted, the second holds it against ray-schema.json.
    validate_config(prepare_config(documents(path)[0]))


@pytest.mark.parametrize("path", LAUNCHER, ids=name)
def test_launched_cluster_is_idle_and_closed(path: Path) -> None:
    config = documents(path)[0]
    assert f"/balsa-ray:ray-{RAY}-" in config["docker"]["image"]
    head = config["head_start_ray_commands"][-1]
    assert "--num-cpus=0 --num-gpus=0 " in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    assert config["idle_timeout_minutes"] <= 10
    types = config.get("available_node_types")
    if types is None:
        # Ray knows nothing of such a machine before it has joined: it would never start one for a task.
        from ray.autoscaler._private.util import prepare_config

        assert prepare_config(config)["available_node_types"]["local.cluster.node"]["min_workers"] == 2
        # The newer autoscaler would count the head among those two.
        assert head.startswith("RAY_enable_autoscaler_v2=0 ray start ")
        return
    assert types["head"]["resources"] == {"CPU": 0}
    for kind in ("cpu", "gpu"):
        assert types[kind]["min_workers"] == 0
        assert types[kind]["max_workers"] > 0
        assert "spot" in json.dumps(types[kind]["node_config"]).lower()
    # What Ray would make if these were missing is open to the world, or may do everything.
    wanted = {
        "aws": {"SecurityGroupIds", "SubnetIds", "IamInstanceProfile"},
        "gcp": {"networkInterfaces", "serviceAccounts"},
    }
    for node in types.values():
        assert wanted[config["provider"]["type"]] <= node["node_config"].keys()


@pytest.mark.parametrize("path", YAML_FILES, ids=name)
def test_nothing_is_open_or_secret(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\d\.\d+/0|::/0", text), "a range of all addresses"
    for document in documents(path):
        assert document.get("kind") not in ("Secret", "Ingress")
        assert document.get("spec", {}).get("type") not in ("NodePort", "LoadBalancer")
        assert not {"LoadBalancer", "NodePort"} & set(values(document, "serviceType"))
        assert not any(values(document, "hostNetwork"))
        assert not any(values(document, "privileged"))


def test_secrets_are_described() -> None:
    manual = (CLUSTER / "README.md").read_text()
    for path in KUBERAY.rglob("*.yaml"):
        for key in ("secretRef", "secretKeyRef"):
            for reference in (r for document in documents(path) for r in values(document, key)):
                assert f"secret generic {reference['name']}" in manual, reference["name"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=name)
def test_kustomization_names_what_is_there(folder: Path) -> None:
    kustomization = documents(folder / "kustomization.yaml")[0]
    named = [folder / entry for key in ("resources", "components") for entry in kustomization.get(key, [])]
    assert [str(path) for path in named if not path.exists()] == []
    beside = {path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"}
    assert beside <= set(named), "a file that no kustomization reads"


def test_patches_and_replacements_have_their_targets() -> None:
    base = documents(KUBERAY / "base" / "ray-cluster.yaml")[0]
    for folder in KUSTOMIZATIONS:
        kustomization = documents(folder / "kustomization.yaml")[0]
        for replacement in kustomization.get("replacements", []):
            source = replacement["source"]
            assert (source["kind"], source["name"]) == (base["kind"], base["metadata"]["name"])
        for patch in kustomization.get("patches", []):
            patched = yaml.safe_load(patch["patch"])
            if isinstance(patched, dict):
                assert (patched["kind"], patched["metadata"]["name"]) == (base["kind"], base["metadata"]["name"])
            else:
                assert patch["target"] == {"kind": "RayJob"}


@needs_kustomize
@pytest.mark.parametrize("folder", [KUBERAY / "shared", KUBERAY / "monitoring", *OVERLAYS], ids=name)
def test_kubernetes_accepts(folder: Path) -> None:
    fields = yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text())
    for document in built(folder):
        assert document["metadata"].get("namespace", "balsa-ray") == "balsa-ray"
        if document["apiVersion"] == "ray.io/v1":
            jsonschema.validate(document, fields)
        elif document["kind"] != "PodMonitor":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        for template in pod_templates(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in template["spec"]["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert not container["image"].endswith(":latest")
                assert ":" in container["image"]


def test_prometheus_reads_the_pods_that_kuberay_makes() -> None:
    (monitor,) = documents(KUBERAY / "monitoring" / "pod-monitor.yaml")
    (policy,) = documents(KUBERAY / "monitoring" / "network-policy.yaml")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    # The label and the port's name that KubeRay gives its pods; the number is the one that it takes by default.
    assert monitor["spec"] == {
        "selector": {"matchLabels": {"ray.io/is-ray-node": "yes"}},
        "podMetricsEndpoints": [{"port": "metrics"}],
        "podTargetLabels": ["ray.io/cluster"],
    }
    assert (
        policy["spec"]["podSelector"] == documents(KUBERAY / "shared" / "network-policy.yaml")[0]["spec"]["podSelector"]
    )
    assert [rule["ports"] for rule in policy["spec"]["ingress"]] == [[{"port": 8080}]]


@needs_kustomize
@pytest.mark.parametrize("folder", OVERLAYS, ids=name)
def test_ray_cluster_is_the_locks_and_scales_to_its_head(folder: Path) -> None:
    (document,) = [document for document in built(folder) if document["apiVersion"] == "ray.io/v1"]
    cluster = ray_cluster(document)
    assert cluster["rayVersion"] == RAY
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    # Ray counts all GPUs that it sees, and a pod without any of its own may see those of its node.
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert ("gcsFaultToleranceOptions" in cluster) == (document["kind"] != "RayJob")
    for template in pod_templates(document):
        spec = template["spec"]
        assert spec["restartPolicy"] == "Never"
        (container,) = spec["containers"]
        assert f"/balsa-ray:ray-{RAY}-" in container["image"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {"/dev/shm", "/mnt/balsa"}
        assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert [groups[kind]["minReplicas"] for kind in ("cpu", "gpu")] == [0, 0]
    assert groups["cpu"]["rayStartParams"] == {"num-gpus": "0"}
    (worker,) = groups["gpu"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in groups["gpu"]["template"]["spec"]["tolerations"]}


@pytest.mark.parametrize("path", sorted(KUBERAY.rglob("ray-job.yaml")), ids=name)
def test_ray_job_starts_a_job(path: Path) -> None:
    spec = documents(path)[0]["spec"]
    check_command(shlex.split(spec["entrypoint"]), "/opt/balsa_ray/")
    assert yaml.safe_load(spec["runtimeEnvYAML"]).keys() == {"env_vars"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert min(spec[key] for key in ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")) > 0


def test_ray_service_serves_the_application() -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    spec = documents(KUBERAY / "overlays" / "serving" / "ray-service.yaml")[0]["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    # Ray lets unknown keys pass.
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert config["applications"][0].keys() <= ServeApplicationSchema.model_fields.keys()
    module, _, attribute = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    served = ServeConfig.model_validate({"output": "."} | application.args)
    assert served.engine.device != "auto"


@needs_kustomize
@pytest.mark.parametrize("overlay", ["benchmark", "synthesis", "training"])
def test_job_waits_in_kueue(overlay: str, tmp_path: Path) -> None:
    # kustomize reads relative paths alone.
    up = "../" * (len(tmp_path.resolve().parts) - 1)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{up}{(KUBERAY / 'overlays' / overlay).relative_to('/')}]\n"
        f"components: [{up}{(KUBERAY / 'components' / 'kueue').relative_to('/')}]\n"
    )
    (job,) = built(tmp_path)
    jsonschema.validate(job, yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text()))
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "balsa"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in cluster
    assert [group["replicas"] for group in cluster["workerGroupSpecs"]] == [1, 1]


def test_commands_of_the_manual_start_jobs() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", (CLUSTER / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    submitted = [line for line in lines if "ray job submit" in line]
    assert {Path(word).name for line in submitted for word in line.split() if word.startswith("jobs/")} >= JOBS.keys()
    for line in submitted:
        options, _, command = line.partition(" -- ")
        assert "--working-dir ." in options
        assert "--runtime-env cluster/runtime_env.yaml" in options
        parts = shlex.split(command)
        if parts[:2] == ["bash", "-c"]:
            parts = shlex.split(parts[2].rpartition("&& ")[2])
        check_command(parts, "")


def test_commands_of_the_manual_are_rays() -> None:
    from ray.scripts.scripts import cli

    manual = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?:^|[`'] ?)ray ([a-z][a-z_-]*)", manual, re.MULTILINE))
    assert {"up", "exec", "job", "rsync-up", "rsync-down"} <= named
    assert not named - {*cli.commands}


def test_code_alone_is_shipped(tmp_path: Path) -> None:
    import zipfile

    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    environment = documents(CLUSTER / "runtime_env.yaml")[0]
    assert environment.keys() == {"env_vars", "excludes"}
    # As a checkout that has been worked in.
    for folder in (".ci", ".git", ".venv", ".venv-gpu", "benchmarks", "clips", "models", "outputs", "runs", "tests"):
        (tmp_path / "checkout" / folder).mkdir(parents=True)
        (tmp_path / "checkout" / folder / "file").write_text("")
    (tmp_path / "checkout" / "object-store.env").write_text("secret")
    for folder in ("balsa_ray", "cluster", "jobs"):
        shutil.copytree(ROOT / folder, tmp_path / "checkout" / folder)
    for file in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / "checkout")
    package = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes() + environment["excludes"]
    create_package(str(tmp_path / "checkout"), package, include_gitignore=True, excludes=excludes)
    shipped = {entry.partition("/")[0] for entry in zipfile.ZipFile(package).namelist()}
    assert shipped == {".gitignore", "balsa_ray", "cluster", "jobs", "pyproject.toml"}
    assert package.stat().st_size < 20e6
