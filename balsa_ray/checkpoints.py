"""From the name of a model to a directory on this machine, and from a directory to what is known of it."""

import json
from pathlib import Path
from typing import Any

from balsa_ray.config import UserError
from balsa_ray.identity import file_hash, stable_hash

MINIATURE = Path(__file__).parent / "miniature" / "checkpoints"
_PREFIX = "miniature:"


def resolve(name: str, revision: str | None = None) -> Path:
    """Find a checkpoint: a packaged one, a local directory, or a repository of the Hugging Face Hub.

    Args:
        name: `miniature:backbone`, `miniature:backbone-seed1` or `miniature:encoder` (shipped with this package), a
            directory, or a Hub repository such as `openai/whisper-large-v3`. The Hub's cache is used first, and alone
            if `HF_HUB_OFFLINE=1`.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        UserError: there is no such checkpoint; the message says where it was looked for.
    """
    return local(name) or _from_hub(name, revision)


def local(name: str) -> Path | None:
    """Returns the folder of a checkpoint that needs no network; None for the name of a Hub repository.

    Raises:
        UserError: It is packaged or a directory by its name, and isn't there.
    """
    if name.startswith(_PREFIX):
        packaged = MINIATURE / name.removeprefix(_PREFIX)
        if packaged.is_dir():
            return packaged
        shipped = sorted(_PREFIX + path.name for path in MINIATURE.glob("*/"))
        raise UserError(f"{name}: no such packaged checkpoint (there are: {', '.join(shipped) or 'none'})")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory")
    return None


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision))
    except HFValidationError as error:
        raise UserError(f"{name}: neither a directory nor the name of a Hub repository ({error})") from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub can't be reached"
        raise UserError(
            f"{where}: neither a directory here nor in the Hugging Face cache ({constants.HF_HUB_CACHE}), and {reason}"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"{where}: the Hugging Face Hub refused it: {str(error).splitlines()[0]}") from error


def weights_hash(path: str | Path) -> str:
    """Fingerprint of a model's weights: over the names and bytes of all `*.safetensors` in the directory, sorted.

    In its folders too: a model directory keeps updates by LoRA, or the weights of the LLM, in folders of their own.

    Raises:
        UserError: the directory holds no safetensors file.
    """
    root = Path(path)
    files = sorted(root.rglob("*.safetensors"))
    if not files:
        raise UserError(f"{path}: holds no *.safetensors file")
    return stable_hash([[file.relative_to(root).as_posix(), file_hash(file)] for file in files])


def configuration(path: Path) -> dict[str, Any]:
    """Returns the content of a model directory's `config.json`.

    Raises:
        UserError: it has none.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: not a model directory (it has no config.json)")
    return dict(json.loads(file.read_text("utf-8")))


def fingerprint(path: Path) -> str:
    """What a model is known by, served or not: a hash of its weights and its configuration.

    Raises:
        UserError: the directory holds no model.
    """
    return stable_hash(weights_hash(path), configuration(path))
