"""Models without weights: configurations from what is on this machine, and the real modules on torch's meta device."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PretrainedConfig

from balsa_ray.checkpoints import resolve
from balsa_ray.config import UserError
from balsa_ray.model import lora
from balsa_ray.model.configuration import BalsaConfig
from balsa_ray.model.modeling import BalsaForConditionalGeneration

REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def local_folder(name: str) -> Path | None:
    """Finds the folder with a checkpoint's `config.json`, or at least that file, without asking the Hub.

    Args:
        name: A directory, `miniature:backbone`, or a repository of the Hub, of which the cache is looked at.

    Returns:
        The folder; None for a repository that is not in the cache.

    Raises:
        UserError: If a directory doesn't exist or has no `config.json`.
    """
    if Path(name).expanduser().is_dir() or not REPOSITORY.fullmatch(name):
        folder = resolve(name)
        if not (folder / "config.json").is_file():
            raise UserError(f"{name}: holds no config.json")
        return folder
    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def configuration(name: str) -> PretrainedConfig:
    """Returns a checkpoint's configuration: its own where that is on this machine, else one of `shapes.yaml`.

    Args:
        name: As for `local_folder`.

    Raises:
        UserError: If neither is there.
    """
    if folder := local_folder(name):
        return AutoConfig.from_pretrained(folder)
    if name not in _packaged():
        raise UserError(
            f"{name}: neither a directory here nor in the Hugging Face cache, and its shape is not packaged "
            f"(packaged are {', '.join(_packaged())}); its config.json in a folder is enough"
        )
    return AutoConfig.for_model(**_packaged()[name])


def on_meta(text_model: str, audio_model: str, dtype: torch.dtype, **adapter: Any) -> BalsaForConditionalGeneration:
    """Builds the model that `BalsaForConditionalGeneration.assemble` builds from the same arguments, but without data.

    Args:
        text_model: A causal LM, named as for `local_folder`.
        audio_model: A Whisper checkpoint, named likewise.
        dtype: Of all weights.
        **adapter: The adapter's shape and what is trained beside it, as for `assemble`.

    Raises:
        UserError: If a shape is not known, or if the audio model is no Whisper.
    """
    text_config, audio_config = configuration(text_model), configuration(audio_model)
    if audio_config.model_type != "whisper":
        raise UserError(f"{audio_model}: a model of type {audio_config.model_type!r}, not a Whisper")
    text_lora, audio_lora = adapter.pop("text_lora", None), adapter.pop("audio_lora", None)
    train_encoder = adapter.pop("train_encoder", False)
    adapter["taps"] = adapter.get("taps") or []
    config = BalsaConfig(text_config=text_config, audio_config=audio_config, dtype=dtype, **adapter)
    with torch.device("meta"):
        model = BalsaForConditionalGeneration(config)
        if text_lora:
            lora.add(model.language_model, **text_lora)
        if audio_lora:
            lora.add(model.audio_tower.encoder, **audio_lora, blocks=max(config.taps))
        if train_encoder:
            model.audio_tower.train_encoder()
    return model.to(dtype)


@cache
def _packaged() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(files("balsa_ray.model").joinpath("shapes.yaml").read_text("utf-8"))
