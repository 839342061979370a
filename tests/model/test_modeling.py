import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import TinyCheckpoints, tiny_llama, tiny_whisper, tone
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, WhisperConfig, WhisperForAudioClassification

from balsa_ray.config import UserError
from balsa_ray.model.configuration import BalsaConfig
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor

AUDIO = 320
CLIPS = [tone(300), tone(2_000, 0.5), tone(900, 2)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> BalsaForConditionalGeneration:
    return BalsaForConditionalGeneration.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> BalsaProcessor:
    return BalsaProcessor.from_pretrained(tiny_model)


def examples(processor: BalsaProcessor) -> tuple[dict[str, Tensor], list[tuple[list[int], list[int]]]]:
    """A training batch of no, one and two clips, and its rows before padding."""
    rows = [
        processor.encode_example("What is absent?", [], "a cat meowing"),
        processor.encode_example("What do you hear?", [1], "I hear a dog barking."),
        processor.encode_example("What differs?", [1, 1], "rain"),
    ]
    batch = processor.pad([ids for ids, _ in rows])
    width = batch["input_ids"].shape[1]
    batch["labels"] = torch.tensor([[-100] * (width - len(labels)) + labels for _, labels in rows])
    batch["input_features"] = processor(audio=CLIPS)["input_features"]
    return batch, rows


def reference_loss(model: BalsaForConditionalGeneration, batch: dict[str, Tensor], rows: list) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of the replies, row by row, with the embeddings put in by hand."""
    embeddings = model.embed_audio(batch["input_features"])
    total, tokens, clip = torch.zeros(()), 0, 0
    for ids, labels in rows:
        vectors = []
        for token in ids:
            if token == AUDIO:
                vectors.append(embeddings.flatten(0, 1)[clip])
                clip += 1
            else:
                vectors.append(model.language_model.get_input_embeddings().weight[token])
        log_probs = model.language_model(inputs_embeds=torch.stack(vectors)[None]).logits[0].log_softmax(-1)
        for position, label in enumerate(labels):
            if label != -100:
                total = total - log_probs[position - 1, label]
                tokens += 1
    assert clip == embeddings.shape[0] * embeddings.shape[1]
    return total, tokens


def test_frozen_parts_are_the_checkpoints(
    model: BalsaForConditionalGeneration, tiny_checkpoints: TinyCheckpoints
) -> None:
    llm = AutoModelForCausalLM.from_pretrained(tiny_checkpoints.text).state_dict()
    encoder = WhisperForAudioClassification.from_pretrained(tiny_checkpoints.audio).encoder.state_dict()
    for part, expected in [(model.language_model, llm), (model.audio_tower.encoder, encoder)]:
        got = part.state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assembled = BalsaForConditionalGeneration.assemble(tiny_checkpoints.text, tiny_checkpoints.audio).audio_tower
    assert all(torch.equal(assembled.encoder.state_dict()[name], encoder[name]) for name in encoder)


def test_loss_is_that_of_the_replies(model: BalsaForConditionalGeneration, processor: BalsaProcessor) -> None:
    batch, rows = examples(processor)
    total, tokens = reference_loss(model, batch, rows)
    output = model(**batch)
    torch.testing.assert_close(output.loss, total / tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.reply_losses.sum(), total, rtol=1e-5, atol=1e-5)
    assert len(output.reply_losses) == tokens
    assert output.logits is None
    torch.testing.assert_close(model(**batch, num_items_in_batch=100).loss, total / 100, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(7)).loss, total / 7)


def test_padding_on_either_side_gives_the_same_loss(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    batch, rows = examples(processor)
    width = batch["input_ids"].shape[1]
    right = {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        "input_features": batch["input_features"],
    }
    torch.testing.assert_close(model(**right).loss, model(**batch).loss, rtol=1e-5, atol=1e-5)


def test_only_the_connector_learns(model: BalsaForConditionalGeneration, processor: BalsaProcessor) -> None:
    batch, _ = examples(processor)
    model.train()
    assert model.audio_tower.connector.training
    assert not model.language_model.training
    assert not model.audio_tower.encoder.training
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".connector." in name)
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (
            # A key's bias moves all scores of a query alike, which softmax doesn't see.
            ".connector." in name and not name.endswith("attention.key.bias")
        ) or name.endswith("attention.key.bias")
    model.zero_grad()
    model.eval()


def test_a_few_steps_on_one_batch_lower_the_loss(tiny_model: Path, processor: BalsaProcessor) -> None:
    model = BalsaForConditionalGeneration.from_pretrained(tiny_model).train()
    model.audio_tower.connector.initialize(0)
    batch, _ = examples(processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


def test_a_mixed_batch_generates_what_single_prompts_do(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    prompts = [
        ("What do you hear?", CLIPS[:1]),
        ("Name sounds that are absent, then all others.", []),
        ("What?", CLIPS[1:]),
    ]
    options = {"max_new_tokens": 12, "do_sample": False}
    texts = [processor.prompt_text(text, len(clips)) for text, clips in prompts]
    batch = processor(text=texts, audio=CLIPS)
    replies = model.generate(**batch, **options)
    width = batch["input_ids"].shape[1]
    assert torch.equal(replies[:, :width], batch["input_ids"])
    for text, (_, clips), reply in zip(texts, prompts, replies, strict=True):
        alone = processor(text=text, audio=clips)
        expected = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :].tolist()
        assert reply[width:].tolist()[: len(expected)] == expected
    swapped = processor(text=texts, audio=[CLIPS[0], CLIPS[2], CLIPS[1]])
    assert model.generate(**swapped, **options)[2].tolist() != replies[2].tolist(), "the order of clips must matter"


def test_text_alone_gets_the_llms_own_answer(
    model: BalsaForConditionalGeneration, processor: BalsaProcessor, tiny_checkpoints: TinyCheckpoints
) -> None:
    llm = AutoModelForCausalLM.from_pretrained(tiny_checkpoints.text)
    for question in ("What do you hear?", "Is there rain?", "Describe a siren."):
        batch = processor(text=processor.prompt_text(question, 0))
        expected = llm.generate(**batch, max_new_tokens=20, do_sample=False)
        assert torch.equal(model.generate(**batch, max_new_tokens=20, do_sample=False), expected)


def test_generate_takes_transformers_options(model: BalsaForConditionalGeneration, processor: BalsaProcessor) -> None:
    batch = processor(text=[processor.prompt_text("What?", 1)] * 2, audio=CLIPS[:2])
    output = model.generate(
        **batch, max_new_tokens=5, num_beams=2, num_return_sequences=2, return_dict_in_generate=True,
        repetition_penalty=1.2, output_scores=True,
    )  # fmt: skip
    width = batch["input_ids"].shape[1]
    assert output.sequences.shape[0] == 4
    assert torch.equal(output.sequences[:, :width], batch["input_ids"].repeat_interleave(2, dim=0))
    assert len(output.scores) == output.sequences.shape[1] - width


def test_the_placeholder_is_never_generated(tmp_path: Path, tiny_checkpoints: TinyCheckpoints) -> None:
    """Tables are often padded: the placeholder then has a row, and here the LLM would choose nothing else."""
    text = tiny_llama(tmp_path / "text", tied=False)
    llm = AutoModelForCausalLM.from_pretrained(text)
    llm.resize_token_embeddings(384)
    with torch.no_grad():
        llm.lm_head.weight[AUDIO] = 10 * llm.lm_head.weight[7]
        llm.lm_head.weight[AUDIO + 1] = -llm.lm_head.weight[AUDIO]
    llm.save_pretrained(text)
    model = BalsaForConditionalGeneration.assemble(str(text), tiny_checkpoints.audio, num_query_tokens=4)
    processor = BalsaProcessor.assemble(str(text), tiny_checkpoints.audio, num_query_tokens=4)
    assert model.config.audio_token_id == AUDIO < model.config.text_config.vocab_size
    replies = [
        model.generate(**processor(text=processor.prompt_text(question, 0)), max_new_tokens=8, do_sample=False)
        for question in ("What?", "Is there rain?", "Describe a siren.", "Name all")
    ]
    unsuppressed = [
        llm.generate(**processor(text=processor.prompt_text(question, 0)), max_new_tokens=8, do_sample=False)
        for question in ("What?", "Is there rain?", "Describe a siren.", "Name all")
    ]
    assert any(AUDIO in reply for reply in unsuppressed), "else this shows nothing"
    assert not any(AUDIO in reply for reply in replies)


def test_placeholders_and_clips_must_match(model: BalsaForConditionalGeneration, processor: BalsaProcessor) -> None:
    batch = processor(text=processor.prompt_text("What?", 1), audio=CLIPS[:1])
    with pytest.raises(ValueError, match="4 audio placeholders, but 0 windows"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="4 audio placeholders, but 2 windows"):
        model(input_ids=batch["input_ids"], input_features=batch["input_features"].repeat(2, 1, 1))


def test_a_directory_holds_only_what_was_trained(tiny_model: Path, model: BalsaForConditionalGeneration) -> None:
    stored = load_file(tiny_model / "model.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert stored.keys() == trained.keys()
    assert all(torch.equal(stored[name], trained[name]) for name in stored)
    assert json.loads((tiny_model / "config.json").read_text())["text_model"] == model.config.text_model
    assert not any("auto_map" in file.read_text() for file in tiny_model.glob("*.json")), "no remote code"


def test_an_adapter_of_the_papers_size_is_less_than_a_hundredth_of_its_llm(tmp_path: Path) -> None:
    """Llama-3.1-8B with whisper-small, as the recipe has them; the frozen parts as shapes alone."""
    recipe = yaml.safe_load(Path("jobs/configs/llama31_8b_whisper_small.yaml").read_text())["adapter"]
    config = BalsaConfig(
        text_config=LlamaConfig(
            vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
        ),
        audio_config=WhisperConfig(d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072),
        text_model="meta-llama/Llama-3.1-8B-Instruct",
        audio_model="openai/whisper-small",
        dtype=torch.bfloat16,
        **recipe,
    )  # fmt: skip
    with torch.device("meta"):
        model = BalsaForConditionalGeneration(config).to(torch.bfloat16)
    llm = sum(parameter.numel() for parameter in model.language_model.parameters())
    assert 8.0e9 < llm < 8.1e9
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path, state_dict={name: torch.empty_like(p, device="cpu") for name, p in trained.items()})
    stored = sum(file.stat().st_size for file in tmp_path.rglob("*"))
    assert 0.9 < stored / (2 * sum(p.numel() for p in trained.values())) < 1.1
    assert stored < 0.01 * 2 * llm


def test_a_directory_loads_through_auto_classes_and_in_another_precision(
    tiny_model: Path, processor: BalsaProcessor
) -> None:
    model = AutoModel.from_pretrained(tiny_model, dtype=torch.bfloat16)
    assert isinstance(model, BalsaForConditionalGeneration)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = processor(text=processor.prompt_text("What?", 1), audio=CLIPS[:1])
    assert torch.isfinite(model(**batch).logits).all()


def test_a_moved_llm_is_named_and_can_be_given(tiny_model: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((moved / "config.json").read_text())
    there = config["text_model"]
    config["text_model"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="gone: no such directory"):
        BalsaForConditionalGeneration.from_pretrained(moved)
    assert BalsaForConditionalGeneration.from_pretrained(moved, text_model=there).config.text_model == there
    del config["text_model"]
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: text_model is missing"):
        BalsaForConditionalGeneration.from_pretrained(moved)


def test_a_changed_base_is_a_warning(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="balsa_ray"):
        BalsaForConditionalGeneration.from_pretrained(tiny_model)
        assert not caplog.records
        other = tiny_whisper(tmp_path / "other", seed=9)
        BalsaForConditionalGeneration.from_pretrained(tiny_model, audio_model=str(other))
    assert len(caplog.records) == 1
    assert f"the weights of audio_model {other} have changed since training" in caplog.text


def test_a_connector_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "model")
    state = load_file(broken / "model.safetensors")
    state.pop("audio_tower.connector.projection.bias")
    save_file(state, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"not the connector that config\.json describes.*projection\.bias"):
        BalsaForConditionalGeneration.from_pretrained(broken)
