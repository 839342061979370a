"""Builds both checkpoints of the miniature, in two processes at once, and writes their card."""

import json
import multiprocessing
import os
import platform
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from balsa_ray.checkpoints import weights_hash
from balsa_ray.config import UserError
from balsa_ray.miniature.config import BuildMiniatureConfig
from balsa_ray.miniature.lexicon import PACKAGED, read_lexicon, use_lexicon

LEXICON = "lexicon.yaml"
CARD = """# The miniature's checkpoints

Two models small enough to be built, trained and served on two CPU cores. They stand in for an LLM and for Whisper;
nothing but their size is special. Built by

    {command}

| | backbone | encoder |
|---|---|---|
| architecture | `LlamaForCausalLM` | `WhisperForAudioClassification` (encoder and tagging head) |
| learned from | text alone: questions about sets of sound events | synthetic soundscapes, multi-label tagging |
| size | {backbone_size:.1f} MB | {encoder_size:.1f} MB |
| weights hash | `{backbone_hash}` | `{encoder_hash}` |
| build time ({machine}) | {backbone_minutes:.0f} min | {encoder_minutes:.0f} min |

## Backbone: greedy replies to text, on label sets and paraphrases that training never showed (percent)

{backbone_figures}

`*_labels`: labels stated rightly among all stated or due. `*_present`: sounds named as absent although present.
`*_as_listed`: lists of absent sounds in the metadata that a reply names, and nothing else.
The others: replies that are right to the letter.

So that it can read an adapter's vectors, in six of ten training examples the embeddings of the metadata span are
noisy: blends of words, blank slots, Gaussian noise, faint hints at sounds that are not there
(`balsa_ray/miniature/soft_spans.py`). No audio, no adapter and no learned resampler takes part. Replies name labels in
alphabetical order and each once.

## Encoder: tagging of validation soundscapes

{encoder_figures}

Training is stopped where it is good but not perfect, so that a model behind it still has room to hallucinate.
It has never heard a real recording.
"""


def build_miniature(config: BuildMiniatureConfig) -> None:
    """Builds backbone and encoder.

    The lexicon that they know is written beside them.

    Raises:
        UserError: If `output` holds anything already, or the lexicon can't be used.
    """
    words = config.lexicon or PACKAGED
    read_lexicon(words)
    output = Path(config.output)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"output: {output} is not empty; name a new folder or remove it")
    output.mkdir(parents=True, exist_ok=True)
    shutil.copy(words, output / LEXICON)
    threads = max(1, (os.cpu_count() or 1) // 2)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts: dict[str, Future[dict[str, Any]]] = {
            name: pool.submit(_build, name, config, threads) for name in ("encoder", "backbone")
        }
        results = {name: part.result() for name, part in parts.items()}
    (output / "README.md").write_text(card(config, results), "utf-8")
    print(f"built {output}: " + json.dumps({name: result["figures"] for name, result in results.items()}))


def _build(name: str, config: BuildMiniatureConfig, threads: int) -> dict[str, Any]:
    import torch

    from balsa_ray.miniature.backbone import build_backbone
    from balsa_ray.miniature.encoder import build_encoder

    torch.set_num_threads(threads)
    use_lexicon(Path(config.output) / LEXICON)  # of this process, which was started for the build
    start = time.monotonic()

    def log(message: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {message}", flush=True)

    builders: dict[str, Callable[..., dict[str, float]]] = {"backbone": build_backbone, "encoder": build_encoder}
    settings = getattr(config, name).model_dump()
    figures = builders[name](Path(config.output) / name, seed=config.seed, log=log, **settings)
    return {"figures": figures, "minutes": (time.monotonic() - start) / 60}


def card(config: BuildMiniatureConfig, results: dict[str, dict[str, Any]]) -> str:
    """Returns the card: how the checkpoints were built and how good they are."""
    folders = {name: Path(config.output) / name for name in results}
    changed = " ".join(
        [f"lexicon={LEXICON}"] * bool(config.lexicon)
        + [
            f"{part}.{key}={json.dumps(value, separators=(',', ':'))}"
            for part in ("backbone", "encoder")
            for key, value in getattr(config, part).model_dump(exclude_unset=True).items()
        ]
    )
    command = (
        f"python jobs/build_miniature.py jobs/configs/miniature/build.yaml output=DIR seed={config.seed} {changed}"
    )
    fields: dict[str, Any] = {"command": command.strip(), "machine": f"{platform.machine()}, a core each"}
    for name, result in results.items():
        fields[f"{name}_size"] = sum(f.stat().st_size for f in folders[name].rglob("*") if f.is_file()) / 1e6
        fields[f"{name}_hash"] = weights_hash(folders[name])[:16]
        fields[f"{name}_minutes"] = result["minutes"]
        header = "| " + " | ".join(result["figures"]) + " |\n|" + "---|" * len(result["figures"])
        digits = 1 if name == "backbone" else 3
        fields[f"{name}_figures"] = (
            f"{header}\n| " + " | ".join(f"{value:.{digits}f}" for value in result["figures"].values()) + " |"
        )
    return CARD.format(**fields)
