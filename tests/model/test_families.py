"""LLMs of every family that is promised, in miniature: nothing in the model may hang on how one of them is built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, SHAPE, TinyCheckpoints, tiny_llm, tone
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor

# As Gemma's: no system role, turns that alternate, and an end of turn that is not the end of the text.
STRICT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|{{ message.role }}|>\n{{ message.content | trim }}"
    "<|pad|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "chat_template": STRICT_TEMPLATE}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {"vocab_size": 384}),
    "qwen3": (Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (Gemma2Config, GEMMA),
    "gemma3": (Gemma3TextConfig, GEMMA),
    "mistral": (MistralConfig, {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 16}),
    "phi": (PhiConfig, {"chat_template": STRICT_TEMPLATE}),
    "phi3": (Phi3Config, {"sliding_window": 16}),
}
CLIPS = [tone(300), tone(2_000, 0.5), tone(900, 3.5)]
QUESTIONS = [("What do you hear?", 1), ("Name sounds that are absent, then all others.", 0), ("What?", 2)]


@pytest.fixture(scope="module", params=FAMILIES)
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, options = FAMILIES[request.param]
    return tiny_llm(tmp_path_factory.mktemp(request.param), config, **options)


@pytest.fixture(scope="module")
def model(text: Path, tiny_checkpoints: TinyCheckpoints) -> BalsaForConditionalGeneration:
    return BalsaForConditionalGeneration.assemble(str(text), tiny_checkpoints.audio, **SHAPE)


@pytest.fixture(scope="module")
def processor(text: Path, tiny_checkpoints: TinyCheckpoints) -> BalsaProcessor:
    return BalsaProcessor.assemble(str(text), tiny_checkpoints.audio, **SHAPE)


def mixed_batch(processor: BalsaProcessor) -> dict[str, Tensor]:
    """No, one and two clips, one of them of two windows."""
    return dict(processor(text=[processor.prompt_text(*question) for question in QUESTIONS], audio=CLIPS))


@torch.no_grad()
def test_text_alone_gives_the_bare_llms_logits_bit_for_bit(
    text: Path, model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    llm = AutoModelForCausalLM.from_pretrained(text)
    for question in ("What do you hear?", "Is there rain?"):
        batch = processor(text=processor.prompt_text(question, 0))
        own = AutoTokenizer.from_pretrained(text).apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True
        )["input_ids"]
        assert batch["input_ids"][0].tolist() == own
        assert torch.equal(model(**batch).logits, llm(**batch).logits)


def test_only_the_connector_learns_and_the_llm_stays_as_it_was(
    text: Path, model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    batch = mixed_batch(processor)
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] >= 320, -100)
    model(**batch).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if ".connector." in name}
    assert model.audio_tower.connector.queries.grad.abs().sum() > 0
    model.zero_grad()
    own, bare = model.language_model.state_dict(), AutoModelForCausalLM.from_pretrained(text).state_dict()
    assert own.keys() == bare.keys()
    assert all(torch.equal(own[name], bare[name]) for name in bare)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is table) == model.config.text_config.tie_word_embeddings


@torch.no_grad()
def test_clips_stand_where_their_placeholders_were(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    """Against a reference that puts the embeddings in by hand, prompt by prompt, for padding on either side."""
    batch = mixed_batch(processor)
    clips = iter(model.embed_audio(batch["input_features"]).flatten(0, 1))
    expected = []
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    for row in rows:
        vectors = [
            next(clips) if token == model.config.audio_token_id else model.get_input_embeddings()(token[None])[0]
            for token in row
        ]
        expected.append(model.language_model(inputs_embeds=torch.stack(vectors)[None]).logits[0])
    assert next(clips, None) is None
    right = {name: torch.zeros_like(value) for name, value in batch.items() if name != "input_features"}
    for index, row in enumerate(rows):
        right["input_ids"][index, : len(row)], right["attention_mask"][index, : len(row)] = row, 1
    for side in (batch, right | {"input_features": batch["input_features"]}):
        logits = model(**side).logits
        for row, mask, reference in zip(logits, side["attention_mask"], expected, strict=True):
            torch.testing.assert_close(row[mask.bool()], reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clips_are_as_loud_as_the_llms_own_tokens(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    """Gemma scales its embeddings on the way from the table: it is what the layers read that counts."""
    tokens = processor(text="I hear a dog barking and a siren")["input_ids"]
    words = model.embed_prompt(tokens).pow(2).mean(-1).sqrt()
    clips = model.embed_audio(processor(audio=CLIPS)["input_features"]).pow(2).mean(-1).sqrt()
    assert clips.std() < 1e-4 * clips.mean()
    assert 0.8 < float(words.mean() / clips.mean()) < 1.25


def test_a_mixed_batch_generates_what_single_prompts_do(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    batch = mixed_batch(processor)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    replies = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    used = 0
    for (question, clips), reply in zip(QUESTIONS, replies, strict=True):
        alone = processor(text=processor.prompt_text(question, clips), audio=CLIPS[used : used + clips])
        used += clips
        assert torch.equal(model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :], reply)


@torch.no_grad()
def test_a_directory_brings_back_the_same_model(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = mixed_batch(BalsaProcessor.from_pretrained(tmp_path))
    loaded = BalsaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_reply_ends_as_the_llm_ends_its_turns(text: Path, processor: BalsaProcessor) -> None:
    strict = processor.chat_template.endswith(STRICT_TEMPLATE)
    assert strict or processor.chat_template.endswith(CHAT_TEMPLATE)
    ids, labels = processor.encode_example("What?", [1], "rain")
    assert (
        processor.tokenizer.decode(ids[-1])
        == ("<|pad|>" if strict else "<|eos|>")
        == processor.tokenizer.decode(labels[-1])
    )


def test_a_conversation_of_several_turns_and_clips_keeps_their_order(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    turns = [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}, {"type": "audio"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "rain, wind"}]},
        {"role": "user", "content": [{"type": "text", "text": "Is there a siren?"}, {"type": "audio"}]},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    batch = processor(text=text, audio=CLIPS)
    ids = batch["input_ids"][0]
    runs = [len(run) for run in "".join("x" if token == model.config.audio_token_id else " " for token in ids).split()]
    assert runs == [4, 4, 8], "one window, one window, two windows"
    words = processor.tokenizer.decode([token for token in ids if token != model.config.audio_token_id])
    assert words.index("What?") < words.index("rain, wind") < words.index("Is there a siren?")
    other = processor(text=text, audio=[CLIPS[1], CLIPS[0], CLIPS[2]])
    assert not torch.allclose(model(**other).logits, model(**batch).logits)


def test_a_template_that_takes_no_system_message_says_so(processor: BalsaProcessor) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    if processor.chat_template.endswith(STRICT_TEMPLATE):
        with pytest.raises(Exception, match="no system role"):
            processor.apply_chat_template(turns)
    else:
        assert "Be brief." in processor.apply_chat_template(turns)
