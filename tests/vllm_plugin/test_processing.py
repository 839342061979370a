from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tone
from vllm.exceptions import VLLMValidationError

from balsa_ray.audio.decode import resample
from balsa_ray.audio.features import windows_of
from balsa_ray.vllm_plugin.processing import BalsaDummyInputs, BalsaMultiModalProcessor, BalsaProcessingInfo, ClipParser

PARSER = ClipParser(16_000, 2.0)


def parse(audio: object) -> list[np.ndarray]:
    return PARSER.parse_mm_data({"audio": audio})["audio"].get_all()


def test_one_clip_and_several_in_every_form() -> None:
    clip = tone(440)
    for audio in (
        clip,
        (clip, 16_000),
        [clip],
        [(clip, 16_000)],
        [clip.tolist()],
        clip.tolist(),
        [torch.from_numpy(clip)],
    ):
        parsed = parse(audio)
        assert len(parsed) == 1
        np.testing.assert_array_equal(parsed[0], clip)
        assert parsed[0].dtype == np.float32
    assert [len(part) for part in parse([clip, (clip[:800], 16_000)])] == [16_000, 800]


def test_other_rates_and_channels_are_brought_to_what_the_encoder_hears() -> None:
    stereo = np.stack([tone(440, rate=44_100), np.zeros(44_100, np.float32)])
    expected = resample(tone(440, rate=44_100) / 2, 44_100, 16_000)
    for samples in (stereo, stereo.T):
        np.testing.assert_allclose(parse((samples, 44_100))[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([tone(440), np.full(400, np.nan, np.float32)], "clip 1: has NaN"),
        (np.full(400, np.inf), "clip 0: has NaN or infinite"),
        (np.zeros(0, np.float32), "clip 0: empty"),
        (tone(440, 2.5), r"clip 0: 2\.50 s, the model hears at most 2 s"),
        ((tone(440, 2.5, rate=8_000), 8_000), r"2\.50 s"),
        (["text"], "clip 0: not samples"),
        (np.zeros((2, 3, 4)), "clip 0: not samples"),
        ([{"a": 1}], "clip 0: not samples"),
    ],
)
def test_what_is_not_a_clip_is_refused_with_its_reason(audio: object, message: str) -> None:
    with pytest.raises(VLLMValidationError, match=message):
        parse(audio)


def test_a_clip_known_by_its_uuid_passes_and_no_audio_is_none() -> None:
    assert parse([None, tone(440)])[0] is None
    assert PARSER.parse_mm_data({"audio": None}) == {}


@pytest.mark.parametrize(("placeholders", "clips"), [(0, 1), (2, 1), (1, 0), (8, 2)])
def test_clips_and_placeholders_must_match(placeholders: int, clips: int) -> None:
    """8 for 2: a prompt that was expanded already."""
    processor = object.__new__(BalsaMultiModalProcessor)
    processor.info = SimpleNamespace(get_hf_config=lambda: SimpleNamespace(audio_token_id=9))
    items = PARSER.parse_mm_data({"audio": [tone(440)] * clips})
    inputs = SimpleNamespace(prompt=[1, *[9] * placeholders, 2], mm_data_items=items, hf_processor_mm_kwargs={})
    with pytest.raises(VLLMValidationError, match=f"the prompt has {placeholders} × .*, but there are {clips} clips"):
        processor.apply(inputs, None)


@pytest.mark.parametrize(
    ("longest", "context", "windows", "seconds"),
    [
        (5.0, 256, 3, 5.0),
        (6.0, 256, 3, 6.0),
        (300.0, 41, 10, 20.0),  # more would not fit the context of the engine
        (300.0, 3, 1, 2.0),
    ],
)
def test_memory_is_measured_with_the_longest_clip_that_fits(
    longest: float, context: int, windows: int, seconds: float
) -> None:
    info = object.__new__(BalsaProcessingInfo)
    info.get_hf_config = lambda: SimpleNamespace(max_audio_seconds=longest, num_query_tokens=4, sampling_rate=16_000)
    extractor = SimpleNamespace(n_samples=32_000, sampling_rate=16_000)
    info.get_hf_processor = lambda: SimpleNamespace(feature_extractor=extractor)
    assert info.get_mm_max_tokens_per_item(context, {"audio": 1}) == {"audio": 4 * windows}
    data = BalsaDummyInputs(info).get_dummy_mm_data(context, {"audio": 2}, {})
    assert [len(clip) for clip in data["audio"]] == [seconds * 16_000] * 2
    assert windows_of(data["audio"], extractor) == [windows] * 2
