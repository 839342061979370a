from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from balsa_ray import checkpoints
from balsa_ray.checkpoints import fingerprint, resolve, weights_hash
from balsa_ray.config import UserError


def test_packaged_checkpoint_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backbone").mkdir()
    monkeypatch.setattr(checkpoints, "MINIATURE", tmp_path)
    assert resolve("miniature:backbone") == tmp_path / "backbone"
    with pytest.raises(
        UserError, match=r"miniature:bone: no such packaged checkpoint \(there are: miniature:backbone\)"
    ):
        resolve("miniature:bone")


def test_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    assert resolve(str(tmp_path / "models")) == tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    assert resolve("models/small") == tmp_path / "models" / "small"


def test_hub_repository_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--small" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--small" / "refs").mkdir()
    (tmp_path / "models--org--small" / "refs" / "main").write_text("a" * 40)
    # Only the folder is another; the search of the cache is the library's own.
    monkeypatch.setattr("huggingface_hub.snapshot_download", partial(snapshot_download, cache_dir=tmp_path))
    assert resolve("org/small") == snapshot


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/not-there", "org/not-there: neither a directory here nor in the Hugging Face cache"),
        ("/not/there", "/not/there: no such directory"),
        ("./models/x", "./models/x: no such directory"),
        ("what is this?", "what is this?: neither a directory nor the name of a Hub repository"),
    ],
)
def test_missing_checkpoint_is_named(name: str, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(name)
    assert str(refused.value).startswith(reason)
    assert "\n" not in str(refused.value)


def test_weights_hash_is_over_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    before = weights_hash(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert weights_hash(tmp_path) == before
    (tmp_path / "model-2.safetensors").write_bytes(b"owt")
    assert weights_hash(tmp_path) != before


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \*\.safetensors file"):
        weights_hash(tmp_path)


def test_a_fingerprint_is_of_weights_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match="not a model directory"):
        fingerprint(tmp_path)
    seen = set()
    for configuration, weights in (("{}", b"weights"), ('{"a": 1}', b"weights"), ("{}", b"others")):
        (tmp_path / "config.json").write_text(configuration)
        (tmp_path / "model.safetensors").write_bytes(weights)
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 3
