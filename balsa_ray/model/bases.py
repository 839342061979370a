"""The LLM and the encoder of a model directory: where their weights are, and whether they are those trained against."""

import logging
from pathlib import Path

from transformers import AutoConfig

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.model.configuration import BalsaConfig

logger = logging.getLogger(__name__)

TEXT, AUDIO = "text_model", "audio_model"
"""Keys of the configuration, and folders of a model directory that holds the weights itself."""
# What two checkpoints of one architecture have in common.
SHAPE = {
    TEXT: ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"),
    AUDIO: ("d_model", "encoder_layers", "encoder_attention_heads", "num_mel_bins", "max_source_positions"),
}


def base_paths(config: BalsaConfig, directory: Path) -> tuple[Path, Path]:
    """Finds the LLM and the encoder of a model directory; warns if their weights have changed since training.

    Args:
        config: The directory's.
        directory: Where to look for weights that the configuration doesn't name.

    Raises:
        UserError: If one of them can't be found.
        ValueError: If the configuration doesn't name one and the directory doesn't hold it, or if it is of another
            architecture than that trained against.
    """
    text = _base(config, directory, TEXT, config.text_config, config.text_revision)
    return text, _base(config, directory, AUDIO, config.audio_config, config.audio_revision)


def _base(config: BalsaConfig, directory: Path, kind: str, expected: AutoConfig, trained_against: str | None) -> Path:
    name = getattr(config, kind)
    path = directory / kind if name is None else resolve(name)
    if not path.is_dir():
        raise ValueError(f"{directory / 'config.json'}: {kind} is missing, and there is no {path}")
    found = AutoConfig.from_pretrained(path)
    for key in SHAPE[kind]:
        if (value := getattr(found, key, None)) != getattr(expected, key):
            raise ValueError(
                f"{directory}: was trained against another {kind} than {path}: {key} {getattr(expected, key)}, "
                f"there it is {value}"
            )
    if trained_against is not None and (weights := weights_hash(path)) != trained_against:
        logger.warning(
            "%s: the weights of %s %s have changed since training (%s then, %s now); answers may be wrong",
            directory, kind, name or path, trained_against, weights,
        )  # fmt: skip
    return path
