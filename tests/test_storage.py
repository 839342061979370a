import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from balsa_ray import storage
from balsa_ray.config import UserError
from balsa_ray.storage import absolute, find, open_file, parent, probe, read_range, sole_writer, stamp


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same four files on the local disk, in fsspec's memory and in a bucket, whose client is a local folder's."""
    place = {"local": str(tmp_path / "x"), "memory": f"memory://{tmp_path.name}", "s3": "s3://bucket"}[request.param]
    if request.param == "s3":
        local = fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem())
        monkeypatch.setattr(storage, "_arrow", {"s3://bucket": ArrowFSWrapper(local)}.__getitem__)
    for name in ("b.tar", "a.tar", "deep/c.tar", "notes.md"):
        if request.param == "memory":
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}", b"0123456789")
            continue
        file = tmp_path / ("x" if request.param == "local" else "store/bucket") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0123456789")
    return place


def test_a_name_stands_for_the_files_that_are_there(root: str) -> None:
    assert find(root, (".tar",)) == [f"{root}/a.tar", f"{root}/b.tar", f"{root}/deep/c.tar"]
    assert find(f"{root}/*.tar", (".tar",)) == [f"{root}/a.tar", f"{root}/b.tar"]
    assert find(f"{root}/notes.md", (".tar",)) == [f"{root}/notes.md"]
    with pytest.raises(OSError, match=r"no folder with \.csv or \.tsv in it"):
        find(root, (".csv", ".tsv"))


def test_files_are_read_whole_and_in_part(root: str) -> None:
    with open_file(f"{root}/deep/c.tar") as file:
        assert file.read() == b"0123456789"
    assert read_range(f"{root}/a.tar", 3, 4).read() == b"3456"
    with pytest.raises(OSError, match="ends before byte 12"):
        read_range(f"{root}/a.tar", 8, 4)
    with pytest.raises(OSError):  # noqa: PT011 (each store has words of its own)
        open_file(f"{root}/absent")


def test_a_stamp_changes_with_the_file(root: str, tmp_path: Path) -> None:
    before = stamp(f"{root}/a.tar")
    assert before == stamp(f"{root}/a.tar")
    if root.startswith("memory"):
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/a.tar", b"longer than before")
    else:
        (tmp_path / ("store/bucket" if root.startswith("s3") else "x") / "a.tar").write_bytes(b"longer than before")
    assert stamp(f"{root}/a.tar") != before


def test_a_probe_leaves_nothing_behind(root: str) -> None:
    before = find(root, ("",))
    probe(root)
    probe(f"{root}/deep")
    assert find(root, ("",)) == before


def test_a_probe_of_a_folder_that_is_not_there_leaves_none(tmp_path: Path) -> None:
    probe(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "method"), [("write", "open"), ("list", "ls"), ("read", "open"), ("delete", "rm_file")]
)
def test_a_probe_says_what_is_not_allowed(
    step: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store(LocalFileSystem):
        def refuse(self, name: str, mode: str = "") -> None:
            if mode == ("rb" if step == "write" else "wb"):
                return LocalFileSystem.open(self, name, mode)
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, method, lambda self, name, mode="", **_: self.refuse(name, mode))
    monkeypatch.setattr(storage, "_file_system", lambda path: (Store(skip_instance_cache=True), path))
    with pytest.raises(OSError, match=f"^{step}: Permission denied$"):
        probe(str(tmp_path))
    assert [file.name[:7] for file in tmp_path.iterdir()] == ([".probe-"] if step == "delete" else [])


def test_folders_of_paths_and_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (parent("a/b.csv"), absolute("a/b.csv")) == (f"{tmp_path}/a", f"{tmp_path}/a/b.csv")
    assert (parent("s3://x/a/b.csv"), absolute("s3://x/a/b.csv")) == ("s3://x/a", "s3://x/a/b.csv")


def test_a_second_writer_waits_or_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from balsa_ray.storage import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])): print('in', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match="another run is writing there"), sole_writer(tmp_path, 0.3):
            pass
        other.kill()
        with sole_writer(tmp_path):
            pass
