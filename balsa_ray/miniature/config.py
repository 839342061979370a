"""Configuration of `jobs/build_miniature.py`."""

from pydantic import Field

from balsa_ray.config import Config


class BackboneConfig(Config):
    """The language model and its training on the text world."""

    cycles: list[int] = Field(
        [6500, 3000, 2000, 2500, 1600], min_length=1, description="optimizer steps of each cycle of the training"
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


class BuildMiniatureConfig(Config):
    """Build the miniature's two checkpoints from nothing: a tiny LLM and a tiny Whisper encoder."""

    output: str = Field(description="folder for backbone/, encoder/ and README.md, the card")
    seed: int = Field(0, description="seed of both, and of all that they learn from")
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = EncoderConfig()
