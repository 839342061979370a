"""From clips to planned samples: which prompts are put about which clips. Pure functions of (recipe, clips)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from balsa_ray.audio.reference import with_slice
from balsa_ray.config import UserError
from balsa_ray.identity import pick, rng, stable_hash, unit
from balsa_ray.prompts.labels import extract_labels
from balsa_ray.prompts.render import MetadataStyle, Prompt, prompts_of, render_metadata, span, user_content
from balsa_ray.schema import absolute_audio, validate_clip
from balsa_ray.synthesis.config import Kind
from balsa_ray.synthesis.manifest import Source
from balsa_ray.synthesis.pairing import group, ring

Clip = dict[str, Any]
Planned = dict[str, Any]

STYLES: tuple[MetadataStyle, ...] = get_args(MetadataStyle)


@dataclass(frozen=True)
class Recipe:
    """What decides which samples are planned.

    Attributes:
        fingerprint: Hash of everything that decides a reply: a part of each row's id.
        seed: Keys every choice.
        metadata: A style, or `mixed`.
        kinds: Samples of each kind for a clip.
        labels: The labels known in this run.
        source: How the input is read.
    """

    fingerprint: str
    seed: int
    metadata: MetadataStyle | Literal["mixed"]
    kinds: Mapping[Kind, float]
    labels: tuple[str, ...]
    source: Source = field(default_factory=Source)

    def singles(self) -> list[Kind]:
        """Returns the kinds whose prompts speak of one clip."""
        return [kind for kind in self.kinds if clips_of(kind) == 1]

    def groups(self) -> list[Kind]:
        """Returns the kinds whose prompts speak of several."""
        return [kind for kind in self.kinds if clips_of(kind) > 1]


def clips_of(kind: str) -> int:
    """Returns how many clips a sample of a kind has."""
    return prompts_of(kind)[0].clips


def read_clip(row: dict[str, Any], where: str, folder: str, metadata: str) -> Clip:
    """Checks a manifest row and makes of its audio a reference that can be opened anywhere, slice included.

    Args:
        row: The row as it stands in the manifest.
        where: File and row, for errors.
        folder: Where relative paths of audio start.
        metadata: The style that the run reads, or `mixed`.

    Raises:
        UserError: The row can't become samples; names the file, the row and the key.
    """
    clip = validate_clip(row, where)
    audio = clip["audio"]["path"] if isinstance(clip["audio"], dict) else clip["audio"]
    if not audio:
        raise UserError(f"{where}: audio: holds bytes and no path; samples refer to clips by path")
    if metadata == "mixed" and not styles_of(clip):
        raise UserError(f"{where}: has none of {', '.join(STYLES)}, which are what the LLM can read")
    if metadata != "mixed" and metadata not in styles_of(clip):
        raise UserError(f"{where}: {metadata}: missing, and `metadata: {metadata}` asks for it")
    return clip | {"audio": with_slice(absolute_audio(audio, folder), clip.get("start"), clip.get("duration"))}


def styles_of(clip: Clip) -> list[MetadataStyle]:
    """Returns the forms in which a clip's metadata can be given."""
    return [style for style in STYLES if _renders(clip, style)]


def samples_of(recipe: Recipe, kind: Kind, clip_id: str) -> int:
    """Returns how many samples of a kind a clip begins: 1.5 is one for every clip and two for every second."""
    share = recipe.kinds[kind]
    return math.floor(share) + (unit(recipe.seed, "share", kind, clip_id) < share % 1)


def plan_clip(recipe: Recipe, clip: Clip) -> Iterator[Planned]:
    """Yields the samples about one clip."""
    for kind in recipe.singles():
        for turn in range(samples_of(recipe, kind, clip["id"])):
            yield _plan(recipe, kind, [clip], turn)


def plan_groups(recipe: Recipe, clips: Sequence[Clip]) -> Iterator[Planned]:
    """Yields the samples about several clips of one pool; the order of `clips` does not matter."""
    for kind in recipe.groups():
        order = [clips[i] for i in ring(recipe.seed, kind, [clip["id"] for clip in clips])]
        for place, clip in enumerate(order):
            for turn in range(samples_of(recipe, kind, clip["id"])):
                members = group(order, place, turn, clips_of(kind))
                if members:
                    yield _plan(recipe, kind, members, turn)


def user_turn(planned: Planned) -> str:
    """Returns what the LLM reads: each clip's metadata between its marks, then the prompt."""
    return user_content([span(text) for text in planned["metadata"]], planned["prompt"])


def stated_labels(clip: Clip, labels: Sequence[str]) -> list[str]:
    """Returns every label that a clip's metadata states, in whatever form, each once and spelt as in `labels`."""
    named = [*clip.get("tags", []), *(event["label"] for event in clip.get("events", [])), clip.get("caption", "")]
    return list(dict.fromkeys(label for text in named for label in extract_labels(text, labels)))


def _plan(recipe: Recipe, kind: Kind, clips: list[Clip], turn: int) -> Planned:
    ids = [clip["id"] for clip in clips]
    prompt, use = _wording(recipe.seed, kind, ids, turn)
    metadata = _metadata(recipe, kind, clips, turn)
    return {
        "id": stable_hash(recipe.fingerprint, ids, prompt.id, metadata, use),
        "kind": kind,
        "clip_ids": ids,
        "audio": [clip["audio"] for clip in clips],
        "metadata": metadata,
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "present": list(dict.fromkeys(label for clip in clips for label in stated_labels(clip, recipe.labels))),
    }


def _wording(seed: int, kind: str, clip_ids: list[str], turn: int) -> tuple[Prompt, int]:
    """Draws a paraphrase, and how often these clips had it before: all are used before one comes again."""
    paraphrases = prompts_of(kind)
    order = rng(seed, "wording", kind, *clip_ids[:1]).permutation(len(paraphrases))
    return paraphrases[order[turn % len(paraphrases)]], turn // len(paraphrases)


def _metadata(recipe: Recipe, kind: Kind, clips: list[Clip], turn: int) -> list[str]:
    """Renders the clips, in mixed style all in one form that every one of them has, if there is one."""
    if recipe.metadata != "mixed":
        return [render_metadata(clip, recipe.metadata) for clip in clips]
    key = ("style", kind, *(clip["id"] for clip in clips), turn)
    common = [style for style in styles_of(clips[0]) if all(_renders(clip, style) for clip in clips)]
    return [render_metadata(clip, pick(recipe.seed, key, common or styles_of(clip))) for clip in clips]


def _renders(clip: Clip, style: MetadataStyle) -> bool:
    try:
        return bool(render_metadata(clip, style))
    except ValueError:
        return False
