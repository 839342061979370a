"""How vLLM turns a request with clips into token ids and log-mels: by the model's own processor, behind checks.

Whatever a client can get wrong is refused here with `VLLMValidationError` (an HTTP 400 with the reason). Errors raised
inside the processor would reach the client without their reason and with the samples printed, and some faults that are
caught here would end the engine or answer with the wrong clip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.audio import MONO_AUDIO_SPEC, normalize_audio
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import AudioProcessorItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from balsa_ray.audio.decode import AudioError, Samples, resample
from balsa_ray.audio.features import num_windows, windows_of
from balsa_ray.model.configuration import AUDIO_TOKEN, BalsaConfig
from balsa_ray.model.processing import BalsaProcessor


class ClipParser(MultiModalDataParser):
    """Checks clips and brings them to mono at the encoder's rate.

    Args:
        sampling_rate: The encoder's, in Hz; also that of samples which come without a rate.
        max_seconds: Longest clip.
    """

    def __init__(self, sampling_rate: int, max_seconds: float) -> None:
        super().__init__(target_sr=sampling_rate, target_channels=1)
        self.sampling_rate = sampling_rate
        self.max_seconds = max_seconds

    def _parse_audio_data(self, data: Any) -> AudioProcessorItems | None:
        if data is None:
            return None
        # One clip: samples, or (samples, rate). Several: a list of either.
        single = isinstance(data, tuple | np.ndarray) or (len(data) > 0 and isinstance(data[0], float))
        return AudioProcessorItems([self._parse_clip(i, clip) for i, clip in enumerate([data] if single else data)])

    def _parse_clip(self, index: int, clip: Any) -> Samples | None:
        if clip is None:
            return None  # known to the server by its uuid; vLLM refuses it if it isn't
        samples, rate = clip if isinstance(clip, tuple) else (clip, self.sampling_rate)
        name = f"clip {index}"
        try:
            mono = normalize_audio(np.asarray(samples, dtype=np.float32), MONO_AUDIO_SPEC)
            clean = resample(mono, rate, self.sampling_rate, name)
        except AudioError as error:
            raise VLLMValidationError(str(error), parameter="audio") from error
        except (TypeError, ValueError) as error:
            raise VLLMValidationError(f"{name}: not samples of audio", parameter="audio") from error
        if len(clean) > self.max_seconds * self.sampling_rate:
            seconds = len(clean) / self.sampling_rate
            raise VLLMValidationError(
                f"{name}: {seconds:.2f} s, the model hears at most {self.max_seconds:g} s", parameter="audio"
            )
        return clean


class BalsaProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about the model before any request."""

    def get_hf_config(self) -> BalsaConfig:
        """Returns the model's configuration."""
        return self.ctx.get_hf_config(BalsaConfig)

    def get_hf_processor(self, **kwargs: object) -> BalsaProcessor:
        """Returns the model's processor. What a request asks it to change is ignored: `apply` has refused it."""
        return self.ctx.get_hf_processor(BalsaProcessor)

    def get_default_tok_params(self) -> Any:
        """Prompts are rendered chats, which already begin with the special tokens that their template wants."""
        return super().get_default_tok_params().with_kwargs(add_special_tokens=False)

    def get_data_parser(self) -> ClipParser:
        """Returns the parser of what a request brings as `audio`."""
        config = self.get_hf_config()
        return ClipParser(config.sampling_rate, config.max_audio_seconds)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of clips; the engine's `limit_mm_per_prompt` decides."""
        return {"audio": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Returns the embeddings of the longest clip that fits the engine's context."""
        return {"audio": self.get_hf_config().num_query_tokens * self.most_windows(seq_len)}

    def most_windows(self, seq_len: int) -> int:
        """Returns the windows of the longest clip that the model hears and that fits a prompt of `seq_len` tokens."""
        config = self.get_hf_config()
        windows = num_windows(config.max_audio_seconds, self.get_hf_processor().feature_extractor)
        return max(1, min(windows, seq_len // config.num_query_tokens))


class BalsaDummyInputs(BaseDummyInputsBuilder[BalsaProcessingInfo]):
    """The largest input, by which vLLM measures memory at its start."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Returns one placeholder a clip."""
        return AUDIO_TOKEN * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """Returns silence as long as the longest clip that fits."""
        window = self.info.get_hf_processor().feature_extractor.n_samples
        # One that is shorter in seconds than its windows, since the last one is seldom full, is counted the same.
        length = min(
            window * self.info.most_windows(seq_len),
            round(self.info.get_hf_config().max_audio_seconds * self.info.get_hf_config().sampling_rate),
        )
        audio = self._get_dummy_audios(
            length=length, num_audios=mm_counts.get("audio", 0), overrides=mm_options.get("audio")
        )
        return {"audio": audio}


class BalsaMultiModalProcessor(BaseMultiModalProcessor[BalsaProcessingInfo]):
    """Runs the model's processor on a request's clips and expands their placeholders on token ids."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Prepares a request that brings clips; one with text alone doesn't come here.

        Raises:
            VLLMValidationError: If its placeholders and clips don't match in number, or if it asks for another
                processor configuration.
        """
        if inputs.hf_processor_mm_kwargs:
            raise VLLMValidationError("this model takes no mm_processor_kwargs", parameter="mm_processor_kwargs")
        clips = inputs.mm_data_items.get("audio", ())
        placeholders = inputs.prompt.count(self.info.get_hf_config().audio_token_id)
        if placeholders != len(clips):
            # Else a clip would silently be dropped, or land where somebody typed the placeholder.
            raise VLLMValidationError(
                f"the prompt has {placeholders} × {AUDIO_TOKEN}, but there are {len(clips)} clips", parameter="audio"
            )
        if all(clip is not None for clip in clips):
            # A client could send one clip under another's uuid and get the other's cached encoding: the content's
            # hash decides wherever there is content.
            inputs = replace(inputs, mm_uuid_items=None)
        return super().apply(inputs, timing_ctx)

    def _preprocess_hf_mm_data(
        self, mm_data: Mapping[str, object], hf_processor_mm_kwargs: Mapping[str, object]
    ) -> tuple[Mapping[str, object], Mapping[str, object]]:
        return {"audio": mm_data["audios"]}, hf_processor_mm_kwargs

    def _postprocess_hf_mm_data(
        self,
        mm_data: Mapping[str, Any],
        hf_processor_mm_kwargs: Mapping[str, object],
        processed_data: Any,
    ) -> Any:
        windows = windows_of(mm_data.get("audio", ()), self.info.get_hf_processor().feature_extractor)
        processed_data["num_windows"] = torch.tensor(windows, dtype=torch.int64)
        return processed_data

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "input_features": MultiModalFieldConfig.flat_from_sizes("audio", hf_inputs["num_windows"]),
            "num_windows": MultiModalFieldConfig.batched("audio", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        placeholder = self.info.get_hf_config().audio_token_id
        processor = self.info.get_hf_processor()
        windows = out_mm_kwargs.get_data().get("num_windows", ())

        def replacement(clip: int) -> PromptUpdateDetails:
            return PromptUpdateDetails.select_token_id(processor.clip_ids(int(windows[clip])), placeholder)

        return [PromptReplacement(modality="audio", target=[placeholder], replacement=replacement)]
