"""Every kind of model directory, and LLMs of other families, each in an engine of its own, against transformers."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SHAPE, TinyCheckpoints, randomised, tiny_llm, tiny_vllm, tone
from transformers import Gemma3TextConfig, Phi3Config, Qwen2Config

from balsa_ray.model.export import export_full
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor

pytestmark = pytest.mark.slow

TOKENS = 16
# A clip of two windows between two of one.
CLIPS = [tone(300), tone(500, 3.5), tone(2_000, 0.5)]
UPDATES = {"rank": 2, "alpha": 8.0}


def write(text: str, audio: str, path: Path, **options: Any) -> BalsaForConditionalGeneration:
    """Writes a model directory; its connector, and its updates if there are any, show in every answer."""
    model = BalsaForConditionalGeneration.assemble(text, audio, **SHAPE, **options)
    randomised(model.audio_tower.connector)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            randomised(torch.nn.ParameterList([parameter]))
    model.save_pretrained(path)
    BalsaProcessor.assemble(text, audio, **SHAPE).save_pretrained(path)
    return model


def assert_same_answers(directory: Path, model: BalsaForConditionalGeneration) -> list[int]:
    """Compares greedy replies of vLLM with those of a model in transformers, token by token; returns one of them."""
    from vllm import SamplingParams

    processor = BalsaProcessor.from_pretrained(directory)
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=1)
    answer: list[int] = []
    with tiny_vllm(directory) as engine:
        for clips in (CLIPS, CLIPS[1:2], []):
            text = processor.prompt_text("What do you hear?", len(clips))
            request = {"prompt": text} | ({"multi_modal_data": {"audio": clips}} if clips else {})
            output = engine.generate(request, sampling, use_tqdm=False)[0].outputs[0]
            inputs = processor(text=text, audio=clips)
            expected = model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, return_dict_in_generate=True,
                output_logits=True,
            )  # fmt: skip
            tokens = expected.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            assert list(output.token_ids) == tokens
            for step, (token, logits) in enumerate(zip(tokens, expected.logits, strict=True)):
                # Where the table has a row for the placeholder, neither generates it; these are logits before that.
                logits[:, model.config.audio_token_id :][:, :1] = -torch.inf
                assert abs(output.logprobs[step][token].logprob - logits[0].log_softmax(-1)[token].item()) < 1e-3
            answer = answer or tokens
    return answer


def test_updates_are_merged_when_they_are_loaded_and_changed_bases_are_told(
    tiny_checkpoints: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = tiny_checkpoints.text, tiny_checkpoints.audio
    plain = write(*names, tmp_path / "plain")
    model = write(*names, tmp_path / "lora", text_lora=UPDATES, audio_lora=UPDATES)
    file = tmp_path / "lora" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text_revision": "0" * 64}))
    with caplog.at_level(logging.WARNING, logger="balsa_ray"):
        answer = assert_same_answers(tmp_path / "lora", model)
    assert f"the weights of text_model {names[0]} have changed since training ({'0' * 64} then" in caplog.text
    inputs = BalsaProcessor.from_pretrained(tmp_path / "plain")(
        text=BalsaProcessor.from_pretrained(tmp_path / "plain").prompt_text("What do you hear?", 3), audio=CLIPS
    )
    without = plain.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    assert without[0, inputs["input_ids"].shape[1] :].tolist() != answer, "else the updates do nothing"


def test_a_full_directory_is_served_without_its_bases(tiny_checkpoints: TinyCheckpoints, tmp_path: Path) -> None:
    model = write(tiny_checkpoints.text, tiny_checkpoints.audio, tmp_path / "trained", text_lora=UPDATES)
    export_full(tmp_path / "trained", tmp_path / "full")
    assert json.loads((tmp_path / "full" / "config.json").read_text())["text_model"] is None
    assert_same_answers(tmp_path / "full", model)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        # Scaled embeddings; a padded table; fused layers.
        (Gemma3TextConfig, {"head_dim": 32, "query_pre_attn_scalar": 32}),
        (Qwen2Config, {"vocab_size": 384, "tie_word_embeddings": True}),
        (Phi3Config, {}),
    ],
    ids=["gemma3", "qwen2", "phi3"],
)
def test_families_answer_as_in_transformers_with_updates_merged(
    family: type, options: dict[str, Any], tiny_checkpoints: TinyCheckpoints, tmp_path: Path
) -> None:
    text = str(tiny_llm(tmp_path / "text", family, **options))
    model = write(text, tiny_checkpoints.audio, tmp_path / "model", text_lora=UPDATES)
    assert_same_answers(tmp_path / "model", model)
