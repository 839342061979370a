import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SHAPE, TinyCheckpoints, randomised, tiny_llm, tone
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, Phi3Config

from balsa_ray.config import UserError
from balsa_ray.model import lora
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor

SMALL = {"rank": 2, "alpha": 8.0}
CLIPS = [tone(300), tone(900, 3.5)]


def assemble(checkpoints: TinyCheckpoints, **options: Any) -> BalsaForConditionalGeneration:
    model = BalsaForConditionalGeneration.assemble(checkpoints.text, checkpoints.audio, **(SHAPE | options))
    randomised(model.audio_tower.connector)
    return model


@pytest.fixture(scope="module")
def batch(tiny_model: Path) -> dict[str, Tensor]:
    """A question about two clips and its reply."""
    processor = BalsaProcessor.from_pretrained(tiny_model)
    ids, labels = processor.encode_example("What differs?", [1, 2], "I hear a dog barking, then rain.")
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "input_features": processor(audio=CLIPS)["input_features"],
    }


def logits(model: BalsaForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(batch["input_ids"], input_features=batch["input_features"]).logits


def train(model: BalsaForConditionalGeneration, batch: dict[str, Tensor], steps: int = 6) -> list[float]:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return losses


@pytest.fixture(scope="module")
def trained(tiny_checkpoints: TinyCheckpoints, batch: dict[str, Tensor]) -> BalsaForConditionalGeneration:
    """A model whose updates of both parts have learned for some steps."""
    model = assemble(tiny_checkpoints, text_lora=SMALL, audio_lora=SMALL | {"target_modules": ["q_proj", "fc2"]})
    losses = train(model, batch)
    assert losses[-1] < losses[0] - 0.5
    return model


@pytest.fixture(scope="module")
def directory(
    trained: BalsaForConditionalGeneration, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("lora") / "model"
    trained.save_pretrained(path)
    BalsaProcessor.from_pretrained(tiny_model).save_pretrained(path)
    return path


def test_untrained_updates_change_nothing_and_depend_on_the_seed_alone(
    tiny_checkpoints: TinyCheckpoints, batch: dict[str, Tensor]
) -> None:
    plain = assemble(tiny_checkpoints)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(drawn))
        model = assemble(tiny_checkpoints, text_lora=SMALL, audio_lora=SMALL, seed=seed)
        assert torch.equal(logits(model, batch), logits(plain, batch))
        drawn.append(torch.cat([p.flatten() for name, p in model.named_parameters() if ".lora_A." in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_updates_and_connector_learn_and_nothing_else(
    tiny_checkpoints: TinyCheckpoints, batch: dict[str, Tensor]
) -> None:
    model = assemble(tiny_checkpoints, text_lora=SMALL, audio_lora=SMALL, taps=[1])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train(model, batch, steps=2)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed == learning
    assert {name for name in learning if ".connector." not in name} == {name for name in before if ".lora_" in name}
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in learning if name.startswith("language_model")}
    layers -= {name.rpartition(".")[2] for name in learning if ".connector." in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, "all but the head"
    assert not any("encoder.layers.1." in name for name in learning), "the second block is behind the last tap"


def test_a_directory_holds_the_updates_and_brings_them_back(
    trained: BalsaForConditionalGeneration, directory: Path, batch: dict[str, Tensor]
) -> None:
    stored = {file.relative_to(directory).as_posix() for file in directory.rglob("*.safetensors")}
    assert stored == {
        "model.safetensors", "lora/text/adapter_model.safetensors", "lora/audio/adapter_model.safetensors"
    }  # fmt: skip
    assert all(key.startswith("audio_tower.connector.") for key in load_file(directory / "model.safetensors"))
    loaded = BalsaForConditionalGeneration.from_pretrained(directory)
    assert torch.equal(logits(loaded, batch), logits(trained, batch))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in trained.named_parameters() if p.requires_grad
    }


@torch.no_grad()
def test_peft_itself_reads_the_updates(trained: BalsaForConditionalGeneration, directory: Path) -> None:
    from peft import PeftModel

    ids = torch.tensor([[1, 30, 40, 50, 60]])
    llm = AutoModelForCausalLM.from_pretrained(trained.config.text_model)
    expected = trained(ids).logits
    assert not torch.allclose(llm(ids).logits, expected, atol=0.1), "else the updates do nothing"
    by_peft = PeftModel.from_pretrained(llm, directory / lora.TEXT)
    torch.testing.assert_close(by_peft(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert by_peft.peft_config["default"].base_model_name_or_path == trained.config.text_model


def test_merged_updates_give_the_same_logits(
    trained: BalsaForConditionalGeneration, directory: Path, batch: dict[str, Tensor]
) -> None:
    merged = BalsaForConditionalGeneration.from_pretrained(directory, merge_lora=True)
    assert not any("lora" in name for name in merged.state_dict())
    # Logits of some units: (W + BA)x and Wx + BAx differ by float32's rounding.
    torch.testing.assert_close(logits(merged, batch), logits(trained, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "options"),
    [(Phi3Config, {}), (GPT2Config, {"n_positions": 512, "n_embd": 64, "n_layer": 2, "n_head": 2})],
    ids=["fused layers", "transposed layers"],
)
def test_updates_of_layers_built_otherwise_are_merged_too(
    family: type, options: dict[str, Any], tiny_checkpoints: TinyCheckpoints, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    text = tiny_llm(tmp_path / "text", family, **options)
    model = BalsaForConditionalGeneration.assemble(str(text), tiny_checkpoints.audio, **SHAPE, text_lora=SMALL)
    before = logits(model, batch)
    train(model, batch, steps=3)
    assert not torch.allclose(logits(model, batch), before, atol=0.1)
    model.save_pretrained(tmp_path / "model")
    merged = BalsaForConditionalGeneration.from_pretrained(tmp_path / "model", merge_lora=True)
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), rtol=1e-4, atol=1e-4)


def test_in_bfloat16_updates_are_bfloat16_and_merging_rounds_once(
    tiny_checkpoints: TinyCheckpoints, directory: Path
) -> None:
    model = assemble(tiny_checkpoints, text_lora=SMALL, audio_lora=SMALL, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    weight = torch.randn(64, 64, dtype=torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    stored = load_file(directory / lora.TEXT / lora.WEIGHTS_FILE)
    others = [(key.split(".lora_A")[0].removeprefix(lora.STORED_PREFIX), value) for key, value in stored.items()]
    checkpoint = {f"{key}.weight": torch.zeros(1) for key, _ in others} | {f"{name}.weight": weight}
    a, b = (stored[f"{lora.STORED_PREFIX}{name}.lora_{x}.weight"].double() for x in "AB")
    expected = (weight.double() + 4 * b @ a).to(torch.bfloat16)
    assert torch.equal(dict(lora.merged(checkpoint.items(), directory / lora.TEXT))[f"{name}.weight"], expected)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["no_proj"], "target_modules.*no_proj.*not found"),
        (["embed_tokens"], "embed_tokens is not a linear layer"),
        (["q_proj", "lm_head"], "lm_head.*the LLM's head stays frozen"),
    ],
)
def test_layers_that_can_not_be_updated_are_named(
    tiny_checkpoints: TinyCheckpoints, modules: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        assemble(tiny_checkpoints, text_lora=SMALL | {"target_modules": modules})


def test_updates_of_another_model_are_refused(directory: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(directory, tmp_path / "model")
    file = broken / lora.TEXT / lora.WEIGHTS_FILE
    state = load_file(file)
    missing = lora.STORED_PREFIX + "model.layers.1.self_attn.q_proj.lora_A.weight"
    state["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = state.pop(missing)
    save_file(state, file)
    with pytest.raises(ValueError, match=r"not updates of this LlamaForCausalLM.*layers\.1.*and 1 more"):
        BalsaForConditionalGeneration.from_pretrained(broken)
    with pytest.raises(ValueError, match=r"updates of weights that the model lacks: model\.layers\.7"):
        BalsaForConditionalGeneration.from_pretrained(broken, merge_lora=True)


def test_updates_that_are_computed_otherwise_are_refused(directory: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(directory, tmp_path / "model")
    file = foreign / lora.TEXT / lora.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    for merge in (False, True):
        with pytest.raises(ValueError, match=r"adapter_config\.json: use_rslora True: only plain LoRA is read"):
            BalsaForConditionalGeneration.from_pretrained(foreign, merge_lora=merge)
