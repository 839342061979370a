import json
from pathlib import Path

import pytest
import torch
from tiny_models import TinyCheckpoints

from balsa_ray.config import UserError
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.shapes import configuration, on_meta

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("text_model", "audio_model", "layers", "published"),
    [
        # LLM and adapter in millions of parameters as published; the encoder as in the checkpoint.
        (LLAMA, "openai/whisper-small", 2, (8030.0, 88.15, 22.25)),
        (QWEN, "openai/whisper-small", 2, (7615.6, 88.15, 21.86)),
        (LLAMA, "openai/whisper-large-v3", 6, (8030.0, 636.97, 163.0)),
        (LLAMA, "openai/whisper-medium", 2, (8030.0, 307.2, 37.9)),
        (LLAMA, "distil-whisper/distil-large-v3", 2, (8030.0, 636.97, 58.06)),
    ],
)
def test_packaged_shapes_have_the_published_number_of_parameters(
    text_model: str, audio_model: str, layers: int, published: tuple[float, float, float]
) -> None:
    model = on_meta(text_model, audio_model, torch.bfloat16, qformer_layers=layers)
    tower = model.audio_tower
    found = tuple(map(millions, (model.language_model, tower.encoder, tower.connector)))
    assert found == pytest.approx(published, rel=0.005)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_embeddings_of_qwen_are_a_billion_of_its_parameters() -> None:
    model = on_meta(QWEN, "openai/whisper-small", torch.bfloat16).language_model
    tables = millions(model.get_input_embeddings()) + millions(model.get_output_embeddings())
    assert millions(model) - tables == pytest.approx(6530, rel=0.005)


@pytest.mark.parametrize("adapter", [{}, {"taps": [1, 2], "num_query_tokens": 5, "qformer_layers": 3}])
def test_a_model_on_meta_is_the_one_that_is_assembled(tiny_checkpoints: TinyCheckpoints, adapter: dict) -> None:
    names = tiny_checkpoints.text, tiny_checkpoints.audio
    assembled = BalsaForConditionalGeneration.assemble(*names, **adapter)
    built = on_meta(*names, torch.float32, **adapter)

    def described(model: BalsaForConditionalGeneration) -> dict:
        # Tied weights stand here once, as they do in memory.
        return {
            name: (tuple(weight.shape), weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()
        }

    assert described(built) == described(assembled)


def test_a_config_json_on_this_machine_comes_before_the_packaged_shape(tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 3}))
    assert configuration(str(folder)).num_hidden_layers == 3
    assert configuration("miniature:backbone").model_type == "llama"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/llm", "/nowhere/llm: no such directory"),
        ("nobody/nothing", "nobody/nothing: neither a directory here nor in the Hugging Face cache, .*Llama-3.1-8B"),
        ("miniature:nothing", "no such packaged checkpoint"),
        (".", "holds no config.json"),
    ],
)
def test_what_is_not_known_is_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        configuration(name)


def test_only_whisper_can_hear() -> None:
    with pytest.raises(UserError, match=f"{LLAMA}: a model of type 'llama', not a Whisper"):
        on_meta(QWEN, LLAMA, torch.float32)
