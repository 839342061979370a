"""`BalsaProcessor`: prompts with clips → token ids and log-mels, the same for training, transformers and vLLM.

Text is tokenised once, with one placeholder a clip; the placeholder is then expanded on ids, never on text, so that
no neighbouring token can change. A clip longer than the encoder's window becomes several windows, one after the other
between the text that stands in front of a clip and the text behind it.
"""

from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from balsa_ray.audio.decode import AudioError
from balsa_ray.audio.features import log_mel, windows_of
from balsa_ray.checkpoints import resolve
from balsa_ray.config import UserError
from balsa_ray.model.configuration import AUDIO_TOKEN, IGNORED, MAX_AUDIO_SECONDS, BalsaConfig


def load_tokenizer(text_model: str) -> PreTrainedTokenizerBase:
    """Returns an LLM's tokenizer with the audio token added behind all others, or where it already was.

    Raises:
        UserError: If the LLM is part of a model of several modalities, or if the tokenizer has no chat template or is
            not this LLM's: ids that a chat is made of lie outside the LLM's table. Special tokens that no chat uses may
            (Gemma's smallest text model comes with an image token).
    """
    path = resolve(text_model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(f"{text_model}: its tokenizer has no chat template")
    config = AutoConfig.from_pretrained(path)
    if config.get_text_config() is not config:
        raise UserError(f"{text_model}: a {config.model_type}, which is more than an LLM; name one for text alone")
    rows, added = config.vocab_size, tokenizer.get_added_vocab()
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    used = [index for token, index in tokenizer.get_vocab().items() if token not in added]
    used += [*tokenizer(turn, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id or 0]
    if (highest := max(used)) >= rows:
        raise UserError(
            f"{text_model}: the tokenizer ({len(tokenizer)} tokens) and the LLM (a table of {rows} rows) don't belong "
            f"together: {tokenizer.convert_ids_to_tokens(highest)!r} has id {highest}"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
    return tokenizer


class BalsaProcessor(ProcessorMixin):
    """Tokenizer, feature extractor and chat template of a balsa model.

    Args:
        feature_extractor: The Whisper encoder's.
        tokenizer: The LLM's, with the audio token added.
        chat_template: The LLM's, behind the preamble that turns content parts into text.
        num_query_tokens: Placeholders a window of a clip.
        audio_begin: Text kept in front of a clip's placeholders.
        audio_end: Text kept behind them.
        max_audio_seconds: Longest clip.
    """

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        num_query_tokens: int = 64,
        audio_begin: str = "",
        audio_end: str = "",
        max_audio_seconds: float = MAX_AUDIO_SECONDS,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.num_query_tokens = num_query_tokens
        self.audio_begin = audio_begin
        self.audio_end = audio_end
        self.max_audio_seconds = max_audio_seconds
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
        max_audio_seconds: float = MAX_AUDIO_SECONDS,
    ) -> Self:
        """Makes the processor that belongs to `BalsaForConditionalGeneration.assemble` with the same arguments.

        Raises:
            UserError: If the LLM has no chat template, or if its tokenizer is not its own.
        """
        tokenizer = load_tokenizer(text_model)
        tokenizer.padding_side = "left"
        tokenizer.chat_template = _preamble() + tokenizer.chat_template
        extractor = AutoFeatureExtractor.from_pretrained(resolve(audio_model))
        shape = num_query_tokens, audio_begin, audio_end, max_audio_seconds
        return cls(extractor, tokenizer, tokenizer.chat_template, *shape)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns."""
        return ["input_ids", "attention_mask", "input_features"]

    def clip_ids(self, windows: int) -> list[int]:
        """Returns the ids that a clip of so many windows becomes: the text in front, placeholders, the text behind."""
        begin, end = self._marks
        return [*begin, *[self.audio_token_id] * (windows * self.num_query_tokens), *end]

    def expand(self, ids: list[int], windows: Iterable[int]) -> list[int]:
        """Replaces each placeholder by the `clip_ids` of its clip.

        Args:
            ids: With one placeholder a clip.
            windows: Of each clip, in the same order; further ones are left to whoever asks next.
        """
        counts = iter(windows)
        return [
            new for token in ids for new in (self.clip_ids(next(counts)) if token == self.audio_token_id else (token,))
        ]

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
            Tensors `input_ids` and `attention_mask` `[B, L]`, padded on the left, and `input_features` `[W, M, F]`,
            all windows of all clips.

        Raises:
            ValueError: If placeholders and clips don't match in number.
            AudioError: If a clip is longer than `max_audio_seconds`.
        """
        rate = kwargs.get("sampling_rate")
        if rate is not None and rate != self.feature_extractor.sampling_rate:
            raise ValueError(f"audio at {rate} Hz, the encoder hears {self.feature_extractor.sampling_rate} Hz")
        clips = [audio] if isinstance(audio, np.ndarray) else list(audio or [])
        for index, clip in enumerate(clips):
            seconds = len(clip) / self.feature_extractor.sampling_rate
            if seconds > self.max_audio_seconds:
                raise AudioError(f"clip {index}: {seconds:.2f} s, the model hears at most {self.max_audio_seconds:g} s")
        windows = windows_of(clips, self.feature_extractor)
        data: dict[str, torch.Tensor] = {}
        if text is not None:
            prompts = self._encode([text] if isinstance(text, str) else text)
            placeholders = sum(ids.count(self.audio_token_id) for ids in prompts)
            if placeholders != len(clips):
                raise ValueError(f"{placeholders} × {self.audio_token} in the text, but {len(clips)} clips")
            counts = iter(windows)
            data |= self.pad([self.expand(ids, counts) for ids in prompts])
        if clips:
            data["input_features"] = torch.from_numpy(log_mel(self.feature_extractor, clips, windows))
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

    def encode_example(self, prompt_content: str, windows: Sequence[int], response: str) -> tuple[list[int], list[int]]:
        """Makes a training example. Prompt and reply are tokenised once and apart, as they are when generating.

        Args:
            prompt_content: The user's words.
            windows: How many windows each clip in front of them has (`audio.features.num_windows`).
            response: The reply to learn.

        Returns:
            `input_ids` and `labels`, equally long; labels are `IGNORED` except on the reply and the end of its turn.
        """
        prompt, reply = self._encode([self.prompt_text(prompt_content, len(windows)), response])
        prompt = self.expand(prompt, windows)
        # A placeholder in a reply would be a label outside the LLM's vocabulary.
        reply = [token for token in reply if token != self.audio_token_id] + [self.turn_end_id]
        return prompt + reply, [IGNORED] * len(prompt) + reply

    @cached_property
    def turn_end_id(self) -> int:
        """The id with which the LLM ends its turn: what its chat template puts right behind a reply.

        Not always the tokenizer's end of text: Gemma ends a turn with `<end_of_turn>`, Phi-3 with `<|end|>`. To teach
        another one would turn the frozen LLM against its own habit.
        """
        reply = "reply"
        chat = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": reply}]
        behind = self.apply_chat_template(chat).rpartition(reply)[2].strip()
        first = self._encode([behind])[0][:1]
        ends = first and first[0] in self.tokenizer.added_tokens_decoder
        return int(first[0] if ends else self.tokenizer.eos_token_id)

    @cached_property
    def _marks(self) -> list[list[int]]:
        return self._encode([self.audio_begin, self.audio_end])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


@cache
def _preamble() -> str:
    return files("balsa_ray.model").joinpath("chat_preamble.jinja").read_text("utf-8")


AutoProcessor.register(BalsaConfig, BalsaProcessor, exist_ok=True)
