"""`BalsaForConditionalGeneration`: an LLM that hears, of which only what was trained is stored.

Shapes: B prompts, L tokens, W windows of the clips in the batch (in reading order: by prompt, by clip, by time), M mel
bins, F mel frames, N query tokens, H LLM width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.model import lora
from balsa_ray.model.bases import AUDIO, TEXT, base_paths
from balsa_ray.model.configuration import AUDIO_TOKEN, MAX_AUDIO_SECONDS, BalsaConfig
from balsa_ray.model.connector import AudioTower, load_encoder
from balsa_ray.model.packed_attention import Layout, hidden_states
from balsa_ray.model.processing import load_tokenizer
from balsa_ray.model.reply_loss import reply_losses

WEIGHTS_FILE = "model.safetensors"
CONNECTOR = "audio_tower.connector."
LANGUAGE_MODEL, ENCODER = "language_model.", "audio_tower.encoder."


@dataclass
class BalsaOutput(CausalLMOutputWithPast):
    """What the model returns: `logits`, or with labels the losses instead.

    Attributes:
        reply_losses: Cross entropy of every label, float32 `[K]`, row by row.
    """

    reply_losses: Tensor | None = None


class BalsaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers prompts of text and any number of clips.

    State-dict keys: `language_model.*` the LLM, `audio_tower.encoder.*` the Whisper encoder (both always in eval mode,
    and frozen but for what `assemble` was told to train), `audio_tower.connector.*` what is always trained.
    """

    config: BalsaConfig
    config_class = BalsaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: BalsaConfig,
        language_model: PreTrainedModel | None = None,
        encoder: WhisperEncoder | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.audio_tower = AudioTower(config, encoder)
        self.audio_tower.connector.initialize(seed)
        self.post_init()
        self.generation_config = self.language_model.generation_config
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(CONNECTOR) or ".lora_" in name)
        self.eval()

    def initialize_weights(self) -> None:
        """Does nothing: each part has its weights by now, and transformers would draw the loaded encoder's anew."""

    @classmethod
    def assemble(
        cls,
        text_model: str,
        audio_model: str,
        *,
        num_query_tokens: int = 64,
        taps: list[int] | None = None,
        qformer_layers: int = 2,
        audio_begin: str = "",
        audio_end: str = "",
        max_audio_seconds: float = MAX_AUDIO_SECONDS,
        text_lora: Mapping[str, Any] | None = None,
        audio_lora: Mapping[str, Any] | None = None,
        train_encoder: bool = False,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        revisions: tuple[str, str] | None = None,
    ) -> Self:
        """Joins an LLM and a Whisper encoder by an untrained connector.

        Args:
            text_model: A causal LM: directory, hub name or `miniature:backbone`.
            audio_model: A Whisper checkpoint of any kind, named likewise.
            num_query_tokens: Embeddings a window of a clip.
            taps: Encoder blocks to read, counted from 1 (default: at quarter depths).
            qformer_layers: Depth of the Q-Former.
            audio_begin: Text kept in front of a clip's embeddings.
            audio_end: Text kept behind them.
            max_audio_seconds: Longest clip.
            text_lora: Arguments of `lora.add` (`rank`, `alpha`, `target_modules`) to train updates of the LLM.
            audio_lora: The same for the encoder.
            train_encoder: Trains the encoder itself.
            dtype: Of all weights.
            seed: Of the initial weights of all that is new, which depend on nothing else.
            revisions: Hashes of the LLM's and the encoder's weights, if they are known: to make them takes reading all.

        Raises:
            UserError: If one of them can't be found, is no such model, or if the LLM's tokenizer is not its own.
        """
        text_path, audio_path = resolve(text_model), resolve(audio_model)
        tokenizer = load_tokenizer(text_model)
        language_model = AutoModelForCausalLM.from_pretrained(text_path, dtype=dtype)
        extractor = AutoFeatureExtractor.from_pretrained(audio_path)
        config = BalsaConfig(
            # A copy of its own: the composite configuration writes into its parts.
            text_config=AutoConfig.from_pretrained(text_path),
            audio_config=AutoConfig.from_pretrained(audio_path),
            text_model=_portable(text_model, text_path),
            text_revision=revisions[0] if revisions else weights_hash(text_path),
            audio_model=None if train_encoder else _portable(audio_model, audio_path),
            audio_revision=revisions[1] if revisions else weights_hash(audio_path),
            audio_token_id=tokenizer.convert_tokens_to_ids(AUDIO_TOKEN),
            num_query_tokens=num_query_tokens,
            taps=taps or [],
            qformer_layers=qformer_layers,
            audio_begin=audio_begin,
            audio_end=audio_end,
            embedding_rms=_embedding_rms(language_model, len(tokenizer)),
            sampling_rate=extractor.sampling_rate,
            max_audio_seconds=max_audio_seconds,
            dtype=dtype,
        )
        encoder = load_encoder(audio_path, config, dtype)
        if text_lora:
            lora.add(language_model, **text_lora, seed=seed)
        if audio_lora:
            lora.add(encoder, **audio_lora, blocks=max(config.taps), seed=seed)
        model = cls(config, language_model, encoder, seed=seed)
        model.audio_tower.connector.to(dtype)
        if train_encoder:
            model.audio_tower.train_encoder()
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        config: BalsaConfig | None = None,
        merge_lora: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Loads a model directory: what was trained from there, the LLM and the encoder from where it names them.

        Args:
            pretrained_model_name_or_path: A directory or hub name written by `save_pretrained`.
            config: Used instead of the directory's own.
            merge_lora: Adds the LoRA updates of the directory to the weights, instead of keeping them beside.
            **kwargs: Attributes of the configuration (`text_model=…` if the LLM has moved); all others (`dtype`,
                `device_map`, `attn_implementation`, …) go to the LLM's own `from_pretrained`.

        Raises:
            UserError: If a named base can't be found.
            ValueError: If a base is of another architecture than that trained against, or if the directory lacks
                weights or holds others than its configuration describes.
        """
        path = resolve(str(pretrained_model_name_or_path))
        for name in ("_from_auto", "trust_remote_code", "adapter_kwargs", "revision"):
            kwargs.pop(name, None)
        dtype, attention = kwargs.pop("dtype", None), kwargs.pop("attn_implementation", None)
        if config is None:
            config, kwargs = BalsaConfig.from_pretrained(path, return_unused_kwargs=True, **kwargs)
        text_path, audio_path = base_paths(config, path)
        language_model = AutoModelForCausalLM.from_pretrained(
            text_path, dtype=config.dtype if dtype in (None, "auto") else dtype, attn_implementation=attention, **kwargs
        )
        encoder = load_encoder(audio_path, config, language_model.dtype)
        for part, folder in ((language_model, path / lora.TEXT), (encoder, path / lora.AUDIO)):
            if folder.is_dir():
                (lora.merge if merge_lora else lora.load)(part, folder)
        model = cls(config, language_model, encoder)
        model.audio_tower.to(language_model.device, language_model.dtype)
        model.load_connector(load_file(path / WEIGHTS_FILE), str(path))
        return model

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Writes what was trained, and a configuration that names the rest and its hashes.

        `model.safetensors` is the connector, `lora/text` and `lora/audio` are updates in peft's format, and
        `text_model/` and `audio_model/` hold the weights of a base that has no name of its own: a trained encoder, or
        everything where LoRA has been merged.

        Args:
            save_directory: Made if it doesn't exist.
            **kwargs: `state_dict` to take the weights from instead of the module (as gathered from shards); whatever
                else transformers' trainers pass is ignored.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = kwargs.get("state_dict") or self.state_dict()
        text, encoder = _part(state, LANGUAGE_MODEL), _part(state, ENCODER)
        if lora.present(self.language_model):
            lora.save(self.language_model, text, directory / lora.TEXT, self.config.text_model)
        if lora.present(self.audio_tower.encoder):
            lora.save(self.audio_tower.encoder, encoder, directory / lora.AUDIO, self.config.audio_model)
        if self.config.text_model is None:
            self.language_model.save_pretrained(directory / TEXT, state_dict=text)
            self.config.text_revision = weights_hash(directory / TEXT)
        if self.config.audio_model is None:
            self.config.audio_config.save_pretrained(directory / AUDIO)
            _write({f"encoder.{key}": value for key, value in encoder.items()}, directory / AUDIO / WEIGHTS_FILE)
            self.config.audio_revision = weights_hash(directory / AUDIO)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.dtype
        self.config.save_pretrained(directory)
        self.generation_config.save_pretrained(directory)
        _write({CONNECTOR + key: value for key, value in _part(state, CONNECTOR).items()}, directory / WEIGHTS_FILE)

    def load_connector(self, state: dict[str, Tensor], where: str) -> None:
        """Loads the connector's weights, all of them or none.

        Args:
            state: Tensors under the keys that `save_pretrained` writes.
            where: Named in the error.

        Raises:
            ValueError: If keys are missing, unknown or of another shape.
        """
        try:
            self.audio_tower.connector.load_state_dict(
                {key.removeprefix(CONNECTOR): value for key, value in state.items()}
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where}: not the connector that config.json describes: {reason}") from error

    def train(self, mode: bool = True) -> Self:
        """Puts the connector in train mode. LLM and encoder stay in eval mode, trained or not: without dropout."""
        super().train(mode)
        self.language_model.eval()
        self.audio_tower.encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Returns the LLM's token embeddings."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Returns the LLM's head."""
        return self.language_model.get_output_embeddings()

    def embed_audio(self, input_features: Tensor) -> Tensor:
        """Returns log-mels `[W, M, F]`, padded to the encoder's window, as LLM embeddings `[W, N, H]`."""
        return self.audio_tower(input_features)

    def embed_prompt(self, input_ids: Tensor, input_features: Tensor | None = None) -> Tensor:
        """Returns the prompt's embeddings `[B, L, H]`, with each clip's at its placeholders.

        Args:
            input_ids: Token ids `[B, L]`, N placeholders a window.
            input_features: Log-mels `[W, M, F]` in reading order; None for text alone.

        Raises:
            ValueError: If placeholders and windows don't match in number.
        """
        vocabulary = self.config.text_config.vocab_size
        # The placeholder usually lies behind the LLM's table; its row is overwritten below.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(input_ids >= vocabulary, 0))
        placeholders = input_ids == self.config.audio_token_id
        windows = 0 if input_features is None else len(input_features)
        if (found := int(placeholders.sum())) != windows * self.config.num_query_tokens:
            raise ValueError(
                f"{found} audio placeholders, but {windows} windows of {self.config.num_query_tokens} embeddings each"
            )
        if windows == 0:
            return embeds
        audio = self.embed_audio(input_features).to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(placeholders[..., None], audio)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> BalsaOutput:
        """Runs the model over whole prompts.

        Several prompts may stand in one row, one behind the other, if there are labels and a `layout`: none then sees
        another. That is quickest if the LLM has been prepared by `packed_attention`.

        Args:
            input_ids: Token ids `[B, L]`, N placeholders a window of a clip.
            attention_mask: 1 where there is a token, `[B, L]`.
            input_features: Log-mels `[W, M, F]` of all clips of the batch, in reading order.
            labels: As `input_ids`, `IGNORED` where nothing is to be learned. Position t is predicted from t - 1.
            num_items_in_batch: Divisor of the summed loss, the reply tokens of the global batch (default: of this one).
            logits_to_keep: As in transformers; of no effect with labels.
            layout: Where the prompts of the single row begin. Mask and positions follow from it.
            **kwargs: Passed to the LLM, if there is no layout.

        Returns:
            Without labels `logits`. With labels `loss` (summed cross entropy over the divisor, in float32) and
            `reply_losses`, and no logits: they would be most of the memory of a step.
        """
        embeds = self.embed_prompt(input_ids, input_features)
        if attention_mask is not None and "position_ids" not in kwargs:
            # Positions count tokens, not padding: a reply then is the same in any batch.
            kwargs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if labels is None:
            output = self.language_model(
                inputs_embeds=embeds, attention_mask=attention_mask, logits_to_keep=logits_to_keep, **kwargs
            )
            return BalsaOutput(**output)
        if layout is not None:
            hidden = hidden_states(self.language_model, embeds, layout)
        else:
            blocks, options = self.language_model.base_model, {"use_cache": False} | kwargs
            hidden = blocks(inputs_embeds=embeds, attention_mask=attention_mask, **options).last_hidden_state
        losses = reply_losses(self.language_model, hidden, labels)
        divisor = max(1, len(losses)) if num_items_in_batch is None else num_items_in_batch
        return BalsaOutput(loss=losses.sum() / divisor, reply_losses=losses)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates replies to a batch of prompts, padded on the left, with any number of clips each.

        The LLM generates from embeddings; nothing of it sees the placeholder's id, which may lie outside its table.

        Args:
            input_ids: Token ids `[B, L]`.
            attention_mask: `[B, L]`; needed if there is padding.
            input_features: Log-mels `[W, M, F]` of all clips, in reading order.
            **kwargs: As for transformers' `generate`.

        Returns:
            As the LLM's own `generate`: prompt and reply ids, one row for each returned sequence.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.config.audio_token_id < self.config.text_config.vocab_size:
            kwargs["suppress_tokens"] = [*(kwargs.get("suppress_tokens") or []), self.config.audio_token_id]
        output = self.language_model.generate(
            inputs_embeds=self.embed_prompt(input_ids, input_features), attention_mask=attention_mask, **kwargs
        )
        replies = output if isinstance(output, Tensor) else output.sequences
        prompts = input_ids.repeat_interleave(len(replies) // len(input_ids), dim=0)
        sequences = torch.cat([prompts.to(replies.device), replies], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


def _portable(name: str, path: Path) -> str:
    """A checkpoint's name as it is stored: a directory's is made absolute, since the reader starts elsewhere."""
    return str(path) if Path(name).expanduser().is_dir() else name


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of one module, under its own names."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, path, metadata={"format": "pt"})


@torch.no_grad()
def _embedding_rms(language_model: PreTrainedModel, tokens: int) -> float:
    """Mean root mean square of the LLM's embeddings of its real tokens (tables may be padded)."""
    embed = language_model.get_input_embeddings()
    # Through the module, not from the table: some families scale their embeddings on the way.
    ids = torch.arange(min(tokens, language_model.config.get_text_config().vocab_size), device=language_model.device)
    return float(torch.cat([embed(part).float().pow(2).mean(dim=-1).sqrt() for part in ids.split(8192)]).mean())


AutoModel.register(BalsaConfig, BalsaForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(BalsaConfig, BalsaForConditionalGeneration, exist_ok=True)
