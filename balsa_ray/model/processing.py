"""`BalsaProcessor`: prompts with clips → token ids and log-mels, the same for training, transformers and vLLM.

Text is tokenised once, with one placeholder a clip; the placeholder is then expanded on ids, never on text, so that
no neighbouring token can change.
"""

from functools import cache
from importlib.resources import files
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from balsa_ray.audio.features import log_mel
from balsa_ray.checkpoints import resolve
from balsa_ray.model.configuration import AUDIO_TOKEN, IGNORED, BalsaConfig


class BalsaProcessor(ProcessorMixin):
    """Tokenizer, feature extractor and chat template of a balsa model.

    Args:
        feature_extractor: The Whisper encoder's.
        tokenizer: The LLM's, with the audio token added.
        chat_template: The LLM's, behind the preamble that turns content parts into text.
        num_query_tokens: Placeholders a clip.
        audio_begin: Text kept in front of a clip's placeholders.
        audio_end: Text kept behind them.
    """

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        num_query_tokens: int = 64,
        audio_begin: str = "",
        audio_end: str = "",
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.num_query_tokens = num_query_tokens
        self.audio_begin = audio_begin
        self.audio_end = audio_end
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    @classmethod
    def assemble(
        cls,
        text_model: str,
        audio_model: str,
        *,
        num_query_tokens: int = 64,
        audio_begin: str = "",
        audio_end: str = "",
    ) -> Self:
        """Makes the processor that belongs to `BalsaForConditionalGeneration.assemble` with the same arguments.

        Raises:
            ValueError: If the LLM has no chat template.
        """
        tokenizer = AutoTokenizer.from_pretrained(resolve(text_model))
        if not isinstance(tokenizer.chat_template, str):
            raise ValueError(f"{text_model}: its tokenizer has no chat template")
        tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
        tokenizer.padding_side = "left"
        tokenizer.chat_template = _preamble() + tokenizer.chat_template
        extractor = AutoFeatureExtractor.from_pretrained(resolve(audio_model))
        return cls(extractor, tokenizer, tokenizer.chat_template, num_query_tokens, audio_begin, audio_end)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns."""
        return ["input_ids", "attention_mask", "input_features"]

    @property
    def clip_ids(self) -> list[int]:
        """Token ids that a clip becomes: the text in front, its placeholders, the text behind."""
        begin, end = self._encode([self.audio_begin, self.audio_end])
        return [*begin, *[self.audio_token_id] * self.num_query_tokens, *end]

    def expand(self, ids: list[int]) -> list[int]:
        """Replaces each placeholder by `clip_ids`."""
        clip_ids = self.clip_ids
        return [new for token in ids for new in (clip_ids if token == self.audio_token_id else (token,))]

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: npt.NDArray[np.float32] | list[npt.NDArray[np.float32]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch for the model.

        Args:
            text: Prompts as rendered by `apply_chat_template`, with one placeholder a clip; special tokens are not
                added a second time. None if only features are wanted.
            audio: All clips of the batch in reading order, mono, at the feature extractor's rate.
            **kwargs: `sampling_rate` is checked; others of transformers' conventions have no effect.

        Returns:
            Tensors `input_ids` and `attention_mask` `[B, L]`, padded on the left, and `input_features` `[C, M, F]`.

        Raises:
            ValueError: If placeholders and clips don't match in number.
            AudioError: If a clip is longer than the encoder's window.
        """
        rate = kwargs.get("sampling_rate")
        if rate is not None and rate != self.feature_extractor.sampling_rate:
            raise ValueError(f"audio at {rate} Hz, the encoder hears {self.feature_extractor.sampling_rate} Hz")
        clips = [audio] if isinstance(audio, np.ndarray) else list(audio or [])
        data: dict[str, torch.Tensor] = {}
        if text is not None:
            prompts = self._encode([text] if isinstance(text, str) else text)
            placeholders = sum(ids.count(self.audio_token_id) for ids in prompts)
            if placeholders != len(clips):
                raise ValueError(f"{placeholders} × {self.audio_token} in the text, but {len(clips)} clips")
            data |= self.pad([self.expand(ids) for ids in prompts])
        if clips:
            data["input_features"] = torch.from_numpy(log_mel(self.feature_extractor, clips))
        return BatchFeature(data)

    @property
    def filler_id(self) -> int:
        """The id that fills up rows, never attended to: some LLMs' tokenizers (Llama) have no padding token."""
        padding = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if padding is None else padding)

    def pad(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """Stacks rows of ids, padded on the left.

        Returns:
            `input_ids` and `attention_mask`, both `[B, L]`.
        """
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[self.filler_id] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        }

    def prompt_text(self, prompt: str, num_clips: int) -> str:
        """Renders one user turn, clips first, up to where the reply begins.

        Args:
            prompt: The user's words.
            num_clips: Clips in front of them, a placeholder each.
        """
        content = [*[{"type": "audio"}] * num_clips, {"type": "text", "text": prompt}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def encode_example(self, prompt_content: str, num_clips: int, response: str) -> tuple[list[int], list[int]]:
        """Makes a training example. Prompt and reply are tokenised once and apart, as they are when generating.

        Args:
            prompt_content: The user's words.
            num_clips: Clips in front of them.
            response: The reply to learn.

        Returns:
            `input_ids` and `labels`, equally long; labels are `IGNORED` except on the reply and the end of its turn.
        """
        prompt, reply = self._encode([self.prompt_text(prompt_content, num_clips), response])
        prompt = self.expand(prompt)
        # A placeholder in a reply would be a label outside the LLM's vocabulary.
        reply = [token for token in reply if token != self.audio_token_id] + [self.tokenizer.eos_token_id]
        return prompt + reply, [IGNORED] * len(prompt) + reply

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


@cache
def _preamble() -> str:
    return files("balsa_ray.model").joinpath("chat_preamble.jinja").read_text("utf-8")


AutoProcessor.register(BalsaConfig, BalsaProcessor, exist_ok=True)
