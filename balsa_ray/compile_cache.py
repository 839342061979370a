"""What is compiled on a machine, by processes side by side of which each may be killed at any moment.

Each vLLM engine has a compile cache of its own: replicas of one machine that share one corrupt it (ray issue 55929).
Extensions of PyTorch are built by one process at a time, and a build that was killed holds up none that comes later.
"""

import fcntl
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import IO, Any

from balsa_ray.identity import stable_hash

_claimed: list[IO[str]] = []  # open as long as the process lives, and with them the locks


def claim(root: Path) -> Path:
    """Makes the first folder of `root` that no living process has this process's own, and returns it.

    Folders are claimed again by later runs, so that what was compiled is found, and there are no more of them than
    there were engines side by side.
    """
    for number in count():
        folder = root / f"replica-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _claimed.append(file)
        return folder
    raise AssertionError("unreachable")


def build_collectives() -> None:
    """Builds DeepSpeed's collectives for CPUs, or loads them; DeepSpeed then finds them loaded."""
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import get_default_build_root

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        environment = stable_hash(sys.prefix, torch.__version__, deepspeed.__version__)[:12]
        build_alone(Path(get_default_build_root()) / "balsa_ray" / environment, builder.load)


def build_alone(root: Path, build: Callable[[], Any]) -> None:
    """Calls what builds extensions of PyTorch in folders of `root`, in one process of the machine at a time.

    PyTorch marks a build under way by a file. The mark of a killed process stays, and whoever comes later waits for
    ever. A lock of the kernel's ends with its process: so a mark that is found under it was left behind.
    """
    root.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    with (root / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for mark in root.glob("*/lock"):
            mark.unlink()
        build()


def with_own_cache(engine: type[Any]) -> type[Any]:
    """Returns a class of engine actors whose processes, and those that they start, have a compile cache of their own.

    Args:
        engine: A class whose constructor starts vLLM.
    """

    class WithOwnCache(engine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            from vllm import envs

            os.environ["VLLM_CACHE_ROOT"] = str(claim(Path(envs.VLLM_CACHE_ROOT)))
            super().__init__(*args, **kwargs)

    WithOwnCache.__name__ = WithOwnCache.__qualname__ = engine.__name__
    return WithOwnCache
