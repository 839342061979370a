"""Files by path or URI: the local disk, `s3://`, `gs://`, `hf://`, and whatever else fsspec knows.

S3 and Google's storage go through Arrow's own clients, which come with pyarrow; the rest through fsspec. Credentials
are found where those clients look for them. Outputs are folders of a file system, with one writer at a time.
"""

import fcntl
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from balsa_ray.config import UserError


def is_uri(path: str) -> bool:
    """Whether a name is a URI and not a path on this machine."""
    return "://" in path


def absolute(path: str) -> str:
    """Returns a path that holds in every process, without ~; a URI stays as it is."""
    return path if is_uri(path) else str(Path(path).expanduser().resolve())


def parent(path: str) -> str:
    """Returns the folder of a file, absolute for a path."""
    return path.rpartition("/")[0] if is_uri(path) else str(Path(path).resolve().parent)


def open_file(path: str) -> IO[bytes]:
    """Opens a file for reading; of a remote one only what is read is fetched.

    Raises:
        OSError: It is not there or can't be read.
    """
    if not is_uri(path):
        return open(path, "rb")
    file_system, name = _file_system(path)
    return file_system.open(name, "rb")


def read_range(path: str, offset: int, size: int) -> io.BytesIO:
    """Reads some bytes out of the middle of a file.

    Raises:
        OSError: The file is not there, or ends before.
    """
    with open_file(path) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"{path}: ends before byte {offset + size}")
    return io.BytesIO(data)


def stamp(path: str) -> list[str]:
    """Returns size and date, or what a store has in place of a date: a cheap sign that a large file has changed."""
    if not is_uri(path):
        status = Path(path).stat()
        return [str(status.st_size), str(status.st_mtime_ns)]
    file_system, name = _file_system(path)
    info = file_system.info(name)
    keys = ("size", "mtime", "ETag", "blob_id", "LastModified", "created")
    return [str(info[key]) for key in keys if info.get(key) is not None]


def find(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the files that a name stands for, sorted: itself, a folder's at any depth, or those of a pattern.

    Args:
        path: A file, a folder or a pattern with `*`.
        suffixes: Which files of a folder are meant, such as `.tar`.

    Raises:
        OSError: There are none, or the store can't be reached.
    """
    file_system, name = _file_system(path)
    if file_system.isfile(name):
        return [path]
    found = file_system.glob(name) if "*" in name else [f for f in file_system.find(name) if f.endswith(suffixes)]
    if not found:
        raise FileNotFoundError(f"no such file, and no folder with {' or '.join(suffixes)} in it")
    scheme = path.partition("://")[0]
    return sorted(f"{scheme}://{file.lstrip('/')}" if is_uri(path) else file for file in found)


@contextmanager
def sole_writer(output: Path, patience: float = 60.0) -> Iterator[None]:
    """Keeps every other process out of OUTPUT until the end of the block.

    When a driver is killed its workers live on for some seconds, and their steps must not mix with those of the same
    command started again. The lock belongs to a process: with it, however it dies, the lock goes.

    Args:
        output: Must exist.
        patience: Seconds to wait for another writer to end.

    Raises:
        UserError: If another run goes on writing there.
    """
    with (output / ".lock").open("a") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"output: {output}: another run is writing there", exit_code=1) from None
                time.sleep(0.2)
        yield


def to_disk(path: Path) -> None:
    """Returns when what was written can survive the loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe(folder: str) -> None:
    """Writes a small file into a folder, lists, reads and removes it, and leaves nothing behind.

    Args:
        folder: A path or URI; a folder that isn't there is made, and goes again.

    Raises:
        OSError: One of the four is not allowed or doesn't work; the message begins with which.
    """
    file_system, place = _file_system(folder)
    name = f"{place.rstrip('/')}/.probe-{secrets.token_hex(8)}"
    made: list[str] = []
    step = "write"
    try:
        if not is_uri(folder):  # an object store has no folders
            absent = [path for path in (Path(place), *Path(place).parents) if not path.exists()]
            for path in reversed(absent):
                path.mkdir()
                made.append(str(path))
        with file_system.open(name, "wb") as file:
            file.write(name.encode())
        step = "list"
        listed = [Path(found).name for found in file_system.ls(place, detail=False)]
        if Path(name).name not in listed:
            raise FileNotFoundError("a file that was just written is not listed")
        step = "read"
        with file_system.open(name, "rb") as file:
            if file.read() != name.encode():
                raise OSError("a file that was just written reads otherwise")
        step = "delete"
        file_system.rm_file(name)
    except OSError as error:
        raise OSError(f"{step}: {(error.strerror or str(error)).splitlines()[0]}") from error
    finally:
        if step in ("list", "read"):
            with suppress(OSError):
                file_system.rm_file(name)
        for path in map(Path, reversed(made)):
            with suppress(OSError):
                path.rmdir()


def _file_system(path: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    scheme, _, name = path.partition("://")
    try:
        if scheme in ("s3", "gs"):
            return _arrow(f"{scheme}://{name.partition('/')[0]}"), name
        file_system, name = url_to_fs(path)
    except (ImportError, ValueError) as error:  # a scheme that nothing here, or nothing at all, can read
        raise OSError(str(error)) from error
    return file_system, name


@cache
def _arrow(bucket: str) -> Any:
    """Arrow's client for a bucket; finding out its region takes a request."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    return ArrowFSWrapper(FileSystem.from_uri(bucket)[0])


def as_readable_as(file: Path) -> None:
    """Gives all weights in a file's folder its permissions: safetensors lets nobody but the owner read them."""
    for weights in file.parent.rglob("*.safetensors"):
        weights.chmod(file.stat().st_mode & 0o777)
