from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TinyCheckpoints, tiny_llm, tone
from transformers import AutoProcessor, AutoTokenizer, Gemma3Config, LlamaConfig

from balsa_ray.audio.decode import AudioError
from balsa_ray.config import UserError
from balsa_ray.model.processing import BalsaProcessor, load_tokenizer
from balsa_ray.prompts.render import user_content

AUDIO = 320


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> BalsaProcessor:
    return BalsaProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def backbone(tiny_checkpoints: TinyCheckpoints) -> object:
    return AutoTokenizer.from_pretrained(tiny_checkpoints.text)


def chat(processor: BalsaProcessor, content: object) -> str:
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_the_directory_brings_back_the_same_processor(tiny_model: Path, processor: BalsaProcessor) -> None:
    loaded = AutoProcessor.from_pretrained(tiny_model)
    assert isinstance(loaded, BalsaProcessor)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.num_query_tokens, loaded.audio_token_id) == (4, AUDIO)
    assert loaded.tokenizer.chat_template == loaded.chat_template == processor.chat_template


def test_the_llms_own_tokens_keep_their_ids(processor: BalsaProcessor, backbone: object) -> None:
    assert len(processor.tokenizer) == len(backbone) + 1
    assert {**processor.tokenizer.get_vocab()}.items() >= backbone.get_vocab().items()


def test_text_alone_is_what_the_llm_itself_would_read(processor: BalsaProcessor, backbone: object) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What do you hear?"}]
    expected = backbone.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    assert processor.apply_chat_template(parts, add_generation_prompt=True) == expected
    ids = processor(text=expected)["input_ids"][0].tolist()
    assert ids == backbone.encode(expected, add_special_tokens=False)


def test_a_clip_is_a_line_of_its_own_as_its_metadata_was(processor: BalsaProcessor) -> None:
    content = [{"type": "audio"}, {"type": "audio"}, {"type": "text", "text": "What differs?"}]
    assert user_content(["<|AUDIO|>"] * 2, "What differs?") in chat(processor, content)
    assert processor.prompt_text("What differs?", 2) == chat(processor, content)


def test_a_template_that_asks_for_the_date_gives_the_same_prompt_every_day(processor: BalsaProcessor) -> None:
    template = processor.chat_template + "{{ strftime_now('%d %b %Y') }}"
    said = processor.apply_chat_template([{"role": "user", "content": "hi"}], chat_template=template)
    assert said.endswith("26 Jul 2024")


def test_order_of_parts_is_kept(processor: BalsaProcessor) -> None:
    content = [{"type": "text", "text": "one "}, {"type": "audio"}, {"type": "text", "text": "two"}]
    assert "one <|AUDIO|>\ntwo" in chat(processor, content)


@pytest.mark.parametrize("typed", ["<|AUDIO|>", "<|AU<|AUDIO|>DIO|>", "<|AU<|AU<|AUDIO|>DIO|>DIO|>"])
def test_a_typed_placeholder_never_takes_a_clips_place(processor: BalsaProcessor, typed: str) -> None:
    assert "<|AUDIO|>" not in chat(processor, typed)
    _, after = chat(processor, [{"type": "text", "text": typed}, {"type": "audio"}]).split("<|AUDIO|>")
    assert after == chat(processor, "").split("<|user|>")[1]


def test_each_placeholder_becomes_the_clips_span(processor: BalsaProcessor) -> None:
    text = chat(processor, [{"type": "audio"}, {"type": "text", "text": "hi"}])
    ids = processor(text=text, audio=[tone(300)])["input_ids"][0].tolist()
    first = ids.index(AUDIO)
    assert ids[first : first + 4] == [AUDIO] * 4
    assert ids.count(AUDIO) == 4
    decode = processor.tokenizer.decode
    assert decode(ids[:first]).endswith("[Begin of audio]")
    assert decode(ids[first + 4 :]).startswith(" [End of audio]\nhi")


def test_a_batch_is_padded_on_the_left_and_keeps_its_clips_in_order(processor: BalsaProcessor) -> None:
    clips = [tone(300), tone(700), tone(1_500)]
    texts = [processor.prompt_text("What?", count) for count in (1, 0, 2)]
    batch = processor(text=texts, audio=clips)
    assert batch["input_features"].shape == (3, 80, 100)
    assert torch.equal(batch["input_features"][:1], processor(audio=clips[0])["input_features"])
    assert (batch["input_ids"] == AUDIO).sum(dim=1).tolist() == [4, 0, 8]
    for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        assert mask.tolist() == sorted(mask.tolist())
        clips_here = [tone(1)] * text.count("<|AUDIO|>")
        assert ids[mask.bool()].tolist() == processor(text=text, audio=clips_here)["input_ids"][0].tolist()


def test_a_long_clip_becomes_a_span_of_several_windows(processor: BalsaProcessor) -> None:
    text = processor.prompt_text("hi", 2)
    batch = processor(text=[text, processor.prompt_text("hi", 1)], audio=[tone(300), tone(700, 5), tone(900, 2.5)])
    assert batch["input_features"].shape == (1 + 3 + 2, 80, 100)
    for row, counts in zip(batch["input_ids"].tolist(), ([4, 12], [8]), strict=True):
        spans = "".join("x" if token == AUDIO else " " for token in row).split()
        assert [len(span) for span in spans] == counts
    assert torch.equal(batch["input_features"][1:4], processor(audio=tone(700, 5))["input_features"])


@pytest.mark.parametrize(("placeholders", "clips"), [(1, 0), (0, 1), (2, 1)])
def test_clips_and_placeholders_must_match(processor: BalsaProcessor, placeholders: int, clips: int) -> None:
    with pytest.raises(ValueError, match=f"{placeholders} × .* in the text, but {clips} clips"):
        processor(text=processor.prompt_text("What?", placeholders), audio=[tone(300)] * clips)


def test_audio_that_does_not_fit_is_refused(processor: BalsaProcessor) -> None:
    with pytest.raises(AudioError, match=r"clip 1: 5\.50 s, the model hears at most 5 s"):
        processor(audio=[tone(300), tone(300, 5.5)])
    with pytest.raises(ValueError, match="audio at 44100 Hz, the encoder hears 16000 Hz"):
        processor(audio=[tone(300)], sampling_rate=44_100)


@given(
    prompt=st.text(st.characters(codec="utf-8"), max_size=40),
    response=st.text(st.characters(codec="utf-8"), max_size=40),
    clips=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_an_example_is_the_prompt_as_generation_sees_it_and_the_reply(
    processor: BalsaProcessor, prompt: str, response: str, clips: int
) -> None:
    ids, labels = processor.encode_example(prompt, [1] * clips, response)
    seen = processor(text=processor.prompt_text(prompt, clips), audio=[np.zeros(16_000, np.float32)] * clips)
    prompt_ids = seen["input_ids"][0].tolist()
    assert ids[: len(prompt_ids)] == prompt_ids
    assert labels == [-100] * len(prompt_ids) + ids[len(prompt_ids) :]
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.decode(ids[len(prompt_ids) : -1]) == response


def test_a_placeholder_in_a_reply_is_no_label(processor: BalsaProcessor) -> None:
    assert AUDIO not in processor.encode_example("What?", [], "I hear <|AUDIO|> it.")[1]


def test_an_llm_and_a_tokenizer_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    text = tiny_llm(tmp_path / "text", LlamaConfig, vocab_size=300)
    with pytest.raises(UserError, match=rf"{text}: the tokenizer \(320 tokens\) and the LLM \(a table of 300 rows\)"):
        load_tokenizer(str(text))


def test_a_chat_token_behind_the_table_is_refused_and_an_unused_one_is_not(tmp_path: Path) -> None:
    """Tokens added for a chat, to an LLM that was never enlarged; and Gemma's image token beside a text model."""
    text = tiny_llm(tmp_path / "text", LlamaConfig)
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(text)
    loaded = load_tokenizer(str(text))
    assert loaded.convert_tokens_to_ids(["<|image|>", "<|AUDIO|>"]) == [320, 321]
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>", "<|image|>")
    tokenizer.save_pretrained(text)
    with pytest.raises(UserError, match=r"'<\|image\|>' has id 320"):
        load_tokenizer(str(text))


def test_a_model_of_several_modalities_is_no_llm(tmp_path: Path) -> None:
    text = tiny_llm(tmp_path / "text", LlamaConfig)
    Gemma3Config().save_pretrained(text)
    with pytest.raises(UserError, match="a gemma3, which is more than an LLM"):
        load_tokenizer(str(text))
