"""Low-rank updates (LoRA, arXiv 2106.09685) of the LLM and of the encoder: added by peft, stored in its format, merged.

Stored relative to the part that they update, so that peft and vLLM can put `lora/text` on the bare LLM as well.
No dropout: one step must be the same in however many micro-batches, on however many workers and after a resume.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balsa_ray.config import UserError
from balsa_ray.identity import rng

TEXT, AUDIO = "lora/text", "lora/audio"
"""Folders in a model directory."""
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
STORED_PREFIX = "base_model.model."  # what peft puts before the names of the model's own modules
NAME = "default"  # of the only update that a part has


def add(
    part: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str] | None = None,
    blocks: int | None = None,
    seed: int = 0,
) -> None:
    """Puts untrained updates into a model's linear layers. At first they change nothing.

    Args:
        part: The LLM or the encoder; changed in place.
        rank: Of each update.
        alpha: Updates are scaled by `alpha / rank`.
        target_modules: Last names of the layers (`q_proj`); default: all linear layers but the head.
        blocks: Only in the first so many blocks (default: in all).
        seed: Of the initial weights, which depend on nothing else.

    Raises:
        UserError: If the model has no such layers, or if one is not linear or is the head, whose gradients the loss
            doesn't make.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = sorted(target_modules or _linear_layers(part))
    head = part.get_output_embeddings()
    if any(module is head and name.rpartition(".")[2] in targets for name, module in part.named_modules()):
        raise UserError(f"target_modules {targets}: the LLM's head stays frozen, leave it out")
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        layers_to_transform=None if blocks is None else list(range(blocks)),
        layers_pattern=None if blocks is None else "layers",
        task_type=None if part.get_output_embeddings() is None else "CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(settings, part, NAME)
    except ValueError as error:
        raise UserError(f"target_modules {targets}: {' '.join(str(error).split())}") from error
    for name, parameter in _updates(part).items():
        # As peft draws them: A uniform, scaled by its width; B zero. But keyed, so that all workers draw the same.
        bound = parameter.shape[-1] ** -0.5 if ".lora_A." in name else 0.0
        values = rng(seed, "lora", type(part).__name__, name).uniform(-bound, bound, tuple(parameter.shape))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.astype("float32")))
        parameter.data = parameter.data.to(part.dtype)  # peft keeps them in float32 beside a bfloat16 model


def present(part: nn.Module) -> bool:
    """Tells whether a model has updates beside its weights."""
    return hasattr(part, "peft_config")


def save(part: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
    """Writes a part's updates in peft's own format.

    Args:
        part: The LLM or the encoder.
        state: Its state dict.
        folder: Made if it doesn't exist.
        base: Name of the checkpoint that they update.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = part.peft_config[NAME]
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(folder)
    settings.inference_mode = False
    stored = {
        STORED_PREFIX + name.replace(f".{NAME}.", "."): value.detach().cpu().contiguous()
        for name, value in state.items()
        if f".{NAME}." in name and ".lora_" in name
    }
    save_file(stored, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load(part: PreTrainedModel, folder: Path) -> None:
    """Puts stored updates beside the weights of a model.

    Raises:
        ValueError: If they are not updates of this model.
    """
    settings = _settings(folder)
    blocks = settings.get("layers_to_transform")
    add(
        part,
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        target_modules=settings["target_modules"],
        blocks=None if blocks is None else len(blocks),
    )
    stored = {_own_name(key): value for key, value in load_file(folder / WEIGHTS_FILE).items()}
    updates = _updates(part)
    if stored.keys() != updates.keys():
        names = sorted(stored.keys() ^ updates.keys())
        raise ValueError(f"{folder}: not updates of this {type(part).__name__}: {names[0]} and {len(names) - 1} more")
    with torch.no_grad():
        for name, value in stored.items():
            updates[name].copy_(value)


def merge(part: nn.Module, folder: Path) -> None:
    """Adds stored updates to the weights of a model that has none beside them, in place."""
    own = part.state_dict()
    with torch.no_grad():
        for name, weight in merged(own.items(), folder):
            if weight is not own[name]:
                own[name].copy_(weight)


def merged(weights: Iterable[tuple[str, Tensor]], folder: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Adds stored updates to weights as they stream by: computed in float32 and rounded once.

    Args:
        weights: Names and tensors of a checkpoint.
        folder: The updates.
        prefix: In front of the names of the part that they belong to.

    Raises:
        ValueError: If there are updates of weights that didn't come by.
    """
    settings = _settings(folder)
    scale, transposed = settings["lora_alpha"] / settings["r"], settings["fan_in_fan_out"]
    stored = {key.removeprefix(STORED_PREFIX): value for key, value in load_file(folder / WEIGHTS_FILE).items()}
    waiting = {prefix + key.removesuffix(".lora_A.weight") for key in stored if key.endswith(".lora_A.weight")}
    for name, weight in weights:
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in waiting:
            waiting.remove(layer)
            key = layer.removeprefix(prefix)
            update = scale * (stored[f"{key}.lora_B.weight"].float() @ stored[f"{key}.lora_A.weight"].float())
            update = update.T if transposed else update
            yield name, (weight.float() + update.to(weight.device)).to(weight.dtype)
        else:
            yield name, weight
    if waiting:
        raise ValueError(f"{folder}: updates of weights that the model lacks: {', '.join(sorted(waiting)[:3])}, …")


def _settings(folder: Path) -> dict[str, Any]:
    """What peft wrote about stored updates.

    Raises:
        ValueError: If they are of a kind that `add` doesn't make and that would be computed otherwise.
    """
    settings: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
        if settings.get(key):
            raise ValueError(f"{folder / CONFIG_FILE}: {key} {settings[key]}: only plain LoRA is read")
    return settings


def _updates(part: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a part's updates.

    Raises:
        UserError: If a layer that is not linear has one (peft keeps it in another form).
    """
    updates = {name: parameter for name, parameter in part.named_parameters() if "lora_" in name}
    for name in updates:
        if not name.endswith((f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight")):
            raise UserError(f"target_modules: {name.partition('.lora_')[0]} is not a linear layer")
    return updates


def _own_name(stored: str) -> str:
    """`base_model.model.layers.0.q_proj.lora_A.weight` → `layers.0.q_proj.lora_A.default.weight`."""
    return stored.removeprefix(STORED_PREFIX).removesuffix(".weight") + f".{NAME}.weight"


def _linear_layers(part: PreTrainedModel) -> set[str]:
    """Last names of a model's linear layers, without its head."""
    head = part.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
