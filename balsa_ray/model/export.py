"""A model directory that needs no other: trained updates merged, the LLM's and the encoder's weights beside them."""

from pathlib import Path

from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.model.processing import BalsaProcessor


def export_full(directory: Path, output: Path) -> None:
    """Writes a self-contained copy of a model directory. The whole model has to fit into main memory.

    Args:
        directory: A model directory of either kind.
        output: The new one: `text_model/` is the LLM in transformers' own format, `audio_model/` the encoder.

    Raises:
        UserError: If the LLM or the encoder that the directory names can't be found.
    """
    model = BalsaForConditionalGeneration.from_pretrained(directory, merge_lora=True)
    model.config.text_model = model.config.audio_model = None
    model.save_pretrained(output)
    BalsaProcessor.from_pretrained(directory).save_pretrained(output)
