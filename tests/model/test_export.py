import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import SHAPE, TinyCheckpoints, randomised, tiny_llama, tiny_whisper, tone
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from balsa_ray.checkpoints import weights_hash
from balsa_ray.model.export import export_full
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor


@pytest.fixture
def names(tmp_path: Path) -> TinyCheckpoints:
    """Bases that a test may throw away."""
    return TinyCheckpoints(str(tiny_llama(tmp_path / "text")), str(tiny_whisper(tmp_path / "audio")))


def save(model: BalsaForConditionalGeneration, names: TinyCheckpoints, path: Path) -> tuple[Path, Tensor]:
    """Writes a model directory; returns also logits about a clip of two windows."""
    model.save_pretrained(path)
    processor = BalsaProcessor.assemble(names.text, names.audio, **SHAPE)
    processor.save_pretrained(path)
    return path, logits(model, processor)


@torch.no_grad()
def logits(model: BalsaForConditionalGeneration, processor: BalsaProcessor) -> Tensor:
    return model(**processor(text=processor.prompt_text("What?", 1), audio=[tone(300, 3)])).logits


@pytest.mark.parametrize("updates", [{}, {"rank": 2, "alpha": 8.0}], ids=["adapter", "lora"])
def test_a_full_directory_needs_no_other(names: TinyCheckpoints, tmp_path: Path, updates: dict) -> None:
    model = BalsaForConditionalGeneration.assemble(
        names.text, names.audio, **SHAPE, text_lora=updates, audio_lora=updates
    )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            randomised(torch.nn.ParameterList([parameter]))
    trained, before = save(model, names, tmp_path / "trained")
    export_full(trained, tmp_path / "full")
    for folder in (names.text, names.audio, trained):
        shutil.rmtree(folder)

    full = AutoModel.from_pretrained(tmp_path / "full")
    assert isinstance(full, BalsaForConditionalGeneration)
    assert full.config.text_model is full.config.audio_model is None
    # Without updates nothing is computed anew; with them the rounding of float32 differs.
    after = logits(full, AutoProcessor.from_pretrained(tmp_path / "full"))
    torch.testing.assert_close(after, before, rtol=1e-4 if updates else 0, atol=1e-4 if updates else 0)
    assert not list((tmp_path / "full").rglob("*adapter*"))
    assert not any("auto_map" in file.read_text() for file in (tmp_path / "full").rglob("*.json")), "no remote code"

    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "full" / "text_model").state_dict()
    assert all(torch.equal(value, full.language_model.state_dict()[name]) for name, value in llm.items())
    export_full(tmp_path / "full", tmp_path / "again")
    assert weights_hash(tmp_path / "again") == weights_hash(tmp_path / "full")


def test_a_trained_encoder_is_stored_and_brought_back(names: TinyCheckpoints, tmp_path: Path) -> None:
    model = BalsaForConditionalGeneration.assemble(names.text, names.audio, **SHAPE, taps=[1], train_encoder=True)
    processor = BalsaProcessor.assemble(names.text, names.audio, **SHAPE)
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    batch = processor(text=processor.prompt_text("What?", 1), audio=[tone(300, 3)])
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == 320, -100)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = logits(model, processor)
    model.train()(**batch).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    encoder = {name.removeprefix("audio_tower.encoder.") for name in learned if ".connector." not in name}
    assert {name.split(".")[0] for name in encoder} == {"conv1", "conv2", "layers"}
    assert not any(name.startswith("layers.1.") for name in encoder), "the second block is behind the last tap"
    optimiser.step()
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())

    directory, after = save(model.eval(), names, tmp_path / "model")
    assert not torch.allclose(before, after)
    stored = {file.relative_to(directory).as_posix() for file in directory.rglob("*.safetensors")}
    assert stored == {"model.safetensors", "audio_model/model.safetensors"}
    assert json.loads((directory / "config.json").read_text())["text_model"] == names.text
    shutil.rmtree(names.audio)
    assert torch.equal(logits(BalsaForConditionalGeneration.from_pretrained(directory), processor), after)
