"""Configuration of `jobs/build_miniature.py`."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from balsa_ray.config import Config


def _some(shares: list[float]) -> list[float]:
    if not 0 < sum(shares) < float("inf"):
        raise ValueError("not all can be 0")
    return shares


Shares = Annotated[list[Annotated[float, Field(ge=0)]], AfterValidator(_some)]


class BackboneConfig(Config):
    """The language model and its training on the text world."""

    cycles: list[int] = Field(
        [4000, 2000, 1500, 1500], min_length=1, description="optimizer steps of each cycle of the training"
    )
    batch_size: int = Field(64, ge=1, description="examples a step")
    hidden_size: int = Field(160, ge=32, multiple_of=32, description="width; attention heads are 32 wide")
    layers: int = Field(4, ge=1, description="decoder layers")
    vocab_size: int = Field(1280, ge=300, description="upper limit of the tokenizer's size")
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate (Muon and AdamW)")
    test_examples: int = Field(400, ge=1, description="held-out questions a task")
    compiled: bool = Field(True, description="compile the training step: a minute once, then about 1.6 times as fast")


class EncoderConfig(Config):
    """The audio encoder and its pretraining on tagging."""

    clips: int = Field(10000, ge=32, description="training clips")
    validation_clips: int = Field(1000, ge=1, description="clips on which mAP is measured after each epoch")
    epochs: int = Field(20, ge=1, description="upper limit of epochs")
    stop_at_map: float = Field(0.9, gt=0, le=1, description="stop after the epoch that reaches this mAP")
    hidden_size: int = Field(128, ge=32, multiple_of=4, description="width")
    layers: int = Field(3, ge=1, description="encoder layers")
    batch_size: int = Field(32, ge=1, description="clips a step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    compiled: bool = Field(True, description="compile the training step: a minute once, then about 1.6 times as fast")


class MixConfig(Config):
    """Scenes that are mixed from recordings."""

    scenes: int = Field(0, ge=0, description="clips to mix, which stand beside the recordings themselves")
    events: Shares = Field([0.4, 0.4, 0.2], description="shares of scenes with one recording, two, three, ...")
    balance: float = Field(
        0.5, ge=0, le=1, description="0: each recording is drawn as often, 1: each label; the same for the tuning"
    )


class TuneConfig(Config):
    """How the encoder, which has heard synthetic sounds alone, is tuned on the recordings' own tags."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=1, description="mixes a step")
    events: Shares = Field([0.6, 0.3, 0.1], description="shares of mixes of one recording, two, three, ...")
    soundscapes: float = Field(0.1, ge=0, lt=1, description="share of synthetic soundscapes, so that none is forgotten")
    learning_rate: float = Field(1.5e-3, gt=0, description="peak learning rate")


class BuildMiniatureConfig(Config):
    """Build the miniature's two checkpoints from nothing: a tiny LLM and a tiny Whisper encoder."""

    output: str = Field(description="folder for backbone/, encoder/ and README.md, the card")
    seed: int = Field(0, description="seed of both, and of all that they learn from")
    lexicon: Path | None = Field(
        None,
        description="words to know in place of balsa_ray/miniature/lexicon.yaml, in its form: keep its groups that are "
        "synthesised, add others with `synthesised: false`; null: the packaged one",
    )
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = EncoderConfig()
