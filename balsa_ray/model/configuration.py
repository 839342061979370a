"""Configuration of the balsa model: which LLM, which audio encoder, and the shape of the adapter between them."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec

AUDIO_TOKEN = "<|AUDIO|>"
MAX_AUDIO_SECONDS = 300.0
IGNORED = -100
"""Label of positions without a loss, the default `ignore_index` of torch's cross entropy."""


def quarter_depths(layers: int) -> list[int]:
    """Returns the blocks at one, two, three and four quarters of an encoder's depth, each once.

    12 blocks (whisper-small) give `[3, 6, 9, 12]`, 32 (large-v3) give `[8, 16, 24, 32]`.
    """
    return sorted({max(1, round(layers * quarter / 4)) for quarter in (1, 2, 3, 4)})


@strict
class BalsaConfig(PretrainedConfig):
    """An LLM and a Whisper encoder, joined by a trained connector.

    Attributes:
        text_config: Configuration of the causal LM.
        audio_config: Configuration of the Whisper checkpoint that the encoder comes from.
        text_model: Where the LLM's weights come from (a directory, a hub name, or `miniature:backbone`). None when
            the model's directory holds them itself, in `text_model/`.
        text_revision: Hash of the LLM's weights that the connector was trained against.
        audio_model: Where the encoder's weights come from, as `text_model`. None, and `audio_model/`, also where the
            encoder was trained.
        audio_revision: Hash of the encoder's weights.
        audio_token: The text that stands for one clip in a prompt.
        audio_token_id: Its id, repeated once for each query token. Usually the first id behind the LLM's table, which
            is therefore never enlarged.
        num_query_tokens: Embeddings that a window of a clip becomes.
        taps: Encoder blocks whose outputs are read, counted from 1: block k is `hidden_states[k]` of transformers, and
            the last block is taken before the encoder's final LayerNorm. The DeSTA2 lists are already in this
            counting, DeSTA2.5's count from 0: `[2, 5, 8, 11]` there is `[3, 6, 9, 12]` here, the default for 12 blocks
            (none given: the blocks at quarter depths).
        qformer_layers: Depth of the Q-Former.
        qformer_heads: Its attention heads (default: as the encoder).
        qformer_intermediate_size: Its feed-forward width (default: four times the encoder's width).
        audio_begin: Text kept in front of a clip's embeddings.
        audio_end: Text kept behind them.
        embedding_rms: Root mean square that every output vector of the connector has: that of the LLM's own token
            embeddings. Without it the projection starts tens of times too loud or too quiet and learns slowly.
        sampling_rate: Of the audio, in Hz.
        max_audio_seconds: Longest clip. One that is longer than the encoder's window becomes several windows of
            `num_query_tokens` each. The default, ten windows of Whisper, takes 640 tokens at the default 64, which any
            LLM's context holds beside a prompt; vLLM measures its memory with clips of this length.
        initializer_range: Standard deviation of the connector's initial weights.
    """

    model_type = "balsa"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "audio_config": SubConfigSpec(config_class=WhisperConfig),
    }

    # Given as dictionaries or configurations, configurations from then on.
    text_config: Any = None
    audio_config: Any = None
    text_model: str | None = None
    text_revision: str | None = None
    audio_model: str | None = None
    audio_revision: str | None = None
    audio_token: str = AUDIO_TOKEN
    audio_token_id: int = 0
    num_query_tokens: int = 64
    taps: list[int] = field(default_factory=list)
    qformer_layers: int = 2
    qformer_heads: int | None = None
    qformer_intermediate_size: int | None = None
    audio_begin: str = ""
    audio_end: str = ""
    embedding_rms: float = 1.0
    sampling_rate: int = 16_000
    max_audio_seconds: float = MAX_AUDIO_SECONDS
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills what follows from the two sub-configurations.

        Raises:
            ValueError: If a tap is not a block of the encoder.
        """
        super().__post_init__(**kwargs)
        # vLLM copies this top-level flag onto the text config; False there would leave a tied LM head unloaded and
        # every logit 0.0, without an error.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        layers = self.audio_config.encoder_layers
        self.taps = self.taps or quarter_depths(layers)
        if not all(1 <= tap <= layers for tap in self.taps):
            raise ValueError(f"taps {self.taps}: the encoder has blocks 1 to {layers}")
        self.qformer_heads = self.qformer_heads or self.audio_config.encoder_attention_heads
        self.qformer_intermediate_size = self.qformer_intermediate_size or 4 * self.audio_config.d_model


AutoConfig.register(BalsaConfig.model_type, BalsaConfig, exist_ok=True)
