"""The plugin in a running engine, against transformers. All tests share one engine."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tone

from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor

pytestmark = pytest.mark.slow

TOKENS = 24
# Windows are of 2 s: the fourth clip fills two of them.
CLIPS = [tone(300), tone(2_000, 0.5), tone(900, 2), tone(500, 3.5)]
REQUESTS = [
    ("What do you hear?", []),
    ("What do you hear?", [0]),
    ("Is there rain?", [0, 1]),
    ("Is there rain?", [1, 0]),
    ("Describe everything.", [2, 0, 1]),
    ("Name three sounds.", [2]),
    ("What do you hear?", [3]),
    ("Is there rain?", [1, 3, 0]),
    ("Is there rain?", [1, 2, 0, 2]),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> BalsaForConditionalGeneration:
    return BalsaForConditionalGeneration.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> BalsaProcessor:
    return BalsaProcessor.from_pretrained(tiny_model)


def greedy(tokens: int = TOKENS) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=1)


def prompt(processor: BalsaProcessor, text: str, clips: list[np.ndarray]) -> dict[str, Any]:
    rendered = {"prompt": processor.prompt_text(text, len(clips))}
    return {**rendered, "multi_modal_data": {"audio": clips}} if clips else rendered


def audio_part(samples: np.ndarray, **extra: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}, **extra}


def chat(engine: Any, *parts: dict[str, Any]) -> Any:
    return engine.chat([{"role": "user", "content": list(parts)}], greedy(), use_tqdm=False)[0]


def test_greedy_answers_and_log_probabilities_equal_transformers(
    tiny_engine: Any, model: BalsaForConditionalGeneration, processor: BalsaProcessor
) -> None:
    requests = [(text, [CLIPS[i] for i in order]) for text, order in REQUESTS]
    together = tiny_engine.generate([prompt(processor, *request) for request in requests], greedy(), use_tqdm=False)
    answers = []
    for (text, clips), output in zip(requests, together, strict=True):
        batch = processor(text=processor.prompt_text(text, len(clips)), audio=clips)
        width = batch["input_ids"].shape[1]
        assert output.prompt_token_ids == batch["input_ids"][0].tolist()
        # min_new_tokens would forbid the end token, which `ignore_eos` does not.
        reference = model.generate(
            **batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
        answer = list(output.outputs[0].token_ids)
        assert answer == reference.sequences[0, width:].tolist()
        answers.append(answer)
        for step, (token, logits) in enumerate(zip(answer, reference.logits, strict=True)):
            expected = logits[0].log_softmax(-1)
            assert abs(output.outputs[0].logprobs[step][token].logprob - expected[token].item()) < 1e-3
            assert expected.std() > 0.5, "constant logits would agree with anything"
    assert answers[2] != answers[3], "the order of clips must matter"
    assert answers[0] != answers[1]
    assert answers[6] not in answers[:6]
    alone = tiny_engine.generate(prompt(processor, *requests[4]), greedy(), use_tqdm=False)[0]
    assert list(alone.outputs[0].token_ids) == answers[4]


def test_a_chat_message_reads_as_the_processor_renders_it(tiny_engine: Any, processor: BalsaProcessor) -> None:
    text = {"type": "text", "text": "Is there rain?"}
    output = chat(tiny_engine, audio_part(CLIPS[0]), audio_part(CLIPS[1]), text)
    expected = tiny_engine.generate(prompt(processor, "Is there rain?", CLIPS[:2]), greedy(), use_tqdm=False)[0]
    assert output.prompt_token_ids == expected.prompt_token_ids
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids
    alone = chat(tiny_engine, text)
    assert alone.prompt_token_ids == processor.encode_example("Is there rain?", [], "")[0][:-1]


def test_audio_at_another_rate_and_in_stereo_is_heard_the_same(tiny_engine: Any, processor: BalsaProcessor) -> None:
    stereo = np.stack([tone(300, rate=44_100)] * 2)
    data = {"multi_modal_data": {"audio": [(stereo, 44_100)]}}
    output = tiny_engine.generate({**prompt(processor, "What?", [CLIPS[0]]), **data}, greedy(), use_tqdm=False)[0]
    expected = tiny_engine.generate(prompt(processor, "What?", [CLIPS[0]]), greedy(), use_tqdm=False)[0]
    assert list(output.outputs[0].token_ids)[:4] == list(expected.outputs[0].token_ids)[:4]


def test_a_typed_placeholder_ends_no_engine(
    tiny_engine: Any, processor: BalsaProcessor, model: BalsaForConditionalGeneration
) -> None:
    """The id lies one behind a table that has no padding row: without the guard this is an IndexError for good."""
    before = chat(tiny_engine, {"type": "text", "text": "What?"})
    assert model.config.audio_token_id == model.config.text_config.vocab_size
    for stray in ({"prompt": "<|AUDIO|> What?"}, {"prompt_token_ids": [1, 320, 320, 7]}):
        assert len(tiny_engine.generate(stray, greedy(4), use_tqdm=False)[0].outputs[0].token_ids) == 4
    chat(tiny_engine, {"type": "text", "text": "<|AUDIO|> What?"})
    after = chat(tiny_engine, {"type": "text", "text": "What?"})
    assert after.outputs[0].token_ids == before.outputs[0].token_ids


def test_a_typed_placeholder_takes_no_clip(tiny_engine: Any) -> None:
    typed = chat(tiny_engine, {"type": "text", "text": "<|AUDIO|> "}, audio_part(CLIPS[0]))
    spaced = chat(tiny_engine, {"type": "text", "text": "  "}, audio_part(CLIPS[0]))
    assert typed.prompt_token_ids == spaced.prompt_token_ids
    assert typed.outputs[0].token_ids == spaced.outputs[0].token_ids


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "hi", "multi_modal_data": {"audio": [CLIPS[0]]}}, "0 × .* but there are 1 clips"),
        ({"prompt": "<|AUDIO|>" * 4, "multi_modal_data": {"audio": [CLIPS[0]]}}, "4 × .* but there are 1 clips"),
        (
            {"prompt": "<|AUDIO|>", "multi_modal_data": {"audio": None}, "multi_modal_uuids": {"audio": ["u"]}},
            "1 × .* but there are 0 clips",
        ),
        ({"prompt": "<|AUDIO|>" * 5, "multi_modal_data": {"audio": [CLIPS[0]] * 5}}, "At most 4 audio"),
        ({"prompt": "<|AUDIO|>", "multi_modal_data": {"audio": [tone(9, 5.5)]}}, "at most 5 s"),
        ({"prompt": "<|AUDIO|>", "multi_modal_data": {"audio": [np.full(99, np.nan)]}}, "NaN"),
        (
            {
                "prompt": "<|AUDIO|>",
                "multi_modal_data": {"audio": [CLIPS[0]]},
                "mm_processor_kwargs": {"num_query_tokens": 2},
            },
            "takes no mm_processor_kwargs",
        ),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(
    tiny_engine: Any, processor: BalsaProcessor, request_: dict[str, Any], message: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        tiny_engine.generate(request_, greedy(), use_tqdm=False)
    assert tiny_engine.generate(prompt(processor, "What?", CLIPS[:1]), greedy(2), use_tqdm=False)


def test_a_uuid_is_never_trusted_over_the_clip(tiny_engine: Any, processor: BalsaProcessor) -> None:
    text = {"type": "text", "text": "What do you hear?"}
    first, second = chat(tiny_engine, audio_part(CLIPS[0]), text), chat(tiny_engine, audio_part(CLIPS[2]), text)
    assert first.outputs[0].token_ids != second.outputs[0].token_ids
    chat(tiny_engine, audio_part(CLIPS[0], uuid="mine"), text)
    spoofed = chat(tiny_engine, audio_part(CLIPS[2], uuid="mine"), text)
    assert spoofed.outputs[0].token_ids == second.outputs[0].token_ids


def test_a_clip_is_encoded_once_for_many_questions(
    tiny_engine: Any, processor: BalsaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balsa_ray.model.connector import AudioTower

    encoded = []
    encode = AudioTower.encode
    monkeypatch.setattr(AudioTower, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    clip = tone(1_234, 1.1)
    prompts = [prompt(processor, f"Question {i}?", [clip.copy()]) for i in range(12)]
    tiny_engine.generate(prompts, greedy(1), use_tqdm=False)
    assert sum(encoded) == 1
    tiny_engine.generate([prompt(processor, "What?", [tone(1_235, 1.1)])], greedy(1), use_tqdm=False)
    assert sum(encoded) == 2
    # All three windows of the longest clip, and none of them again.
    for _ in range(2):
        tiny_engine.generate([prompt(processor, "What?", [tone(700, 5)])], greedy(1), use_tqdm=False)
    assert sum(encoded) == 5
    assert torch.is_grad_enabled()
