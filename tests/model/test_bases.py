import shutil
from pathlib import Path

import pytest
from tiny_models import TinyCheckpoints, tiny_llm
from transformers import AutoConfig, LlamaConfig, MistralConfig, WhisperConfig, WhisperForAudioClassification

from balsa_ray.model.bases import base_paths
from balsa_ray.model.configuration import BalsaConfig


def test_another_architecture_is_refused_with_what_differs(tiny_model: Path, tmp_path: Path) -> None:
    config = BalsaConfig.from_pretrained(tiny_model)
    for name, kind, message in (
        ("family", MistralConfig, "model_type llama, there it is mistral"),
        ("width", LlamaConfig, "hidden_size 64, there it is 96"),
    ):
        config.text_model = str(tiny_llm(tmp_path / name, kind, **({"hidden_size": 96} if name == "width" else {})))
        with pytest.raises(ValueError, match=f"trained against another text_model than .*{name}: {message}"):
            base_paths(config, tiny_model)


def test_another_encoder_is_refused(tiny_model: Path, tiny_checkpoints: TinyCheckpoints, tmp_path: Path) -> None:
    config = BalsaConfig.from_pretrained(tiny_model)
    other = WhisperConfig(**AutoConfig.from_pretrained(tiny_checkpoints.audio).to_dict() | {"encoder_layers": 3})
    WhisperForAudioClassification(other).save_pretrained(tmp_path)
    config.audio_model = str(tmp_path)
    with pytest.raises(ValueError, match=r"another audio_model than .*: encoder_layers 2, there it is 3"):
        base_paths(config, tiny_model)


def test_weights_of_its_own_that_are_gone_are_named(tiny_model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_model, tmp_path / "model")
    config = BalsaConfig.from_pretrained(directory)
    config.text_model = None
    with pytest.raises(ValueError, match=r"config\.json: text_model is missing, and there is no .*model/text_model"):
        base_paths(config, directory)
