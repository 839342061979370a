"""A compile cache for each vLLM engine: replicas of one machine that share one corrupt it (ray issue 55929)."""

import fcntl
import os
from itertools import count
from pathlib import Path
from typing import IO, Any

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
