"""From clips to planned samples: which prompts are put about which clips. Pure functions of (recipe, clips)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from balsa_ray.audio.reference import with_slice
from balsa_ray.config import UserError
from balsa_ray.identity import pick, shuffled, stable_hash, unit
from balsa_ray.prompts.labels import Finder, extract_labels
from balsa_ray.prompts.relations import Ontology, Relations, relate
from balsa_ray.prompts.render import (
    ABOUT_SEVERAL,
    BEGIN,
    END,
    STYLES,
    Kind,
    MetadataStyle,
    Prompt,
    has_metadata,
    prompts,
    render_metadata,
    span,
    user_content,
    with_absent,
)
from balsa_ray.schema import absolute_audio, source_columns, validate_clip
from balsa_ray.synthesis.manifest import Source
from balsa_ray.synthesis.negatives import Negative, Occurrence, draw_absent
from balsa_ray.synthesis.pairing import Companions, Strategy, group, ring

Clip = dict[str, Any]
Planned = dict[str, Any]

NAMES_ABSENT: tuple[Kind, ...] = ("absent", "combined")


@dataclass(frozen=True)
class Recipe:
    """What decides which samples are planned.

    Attributes:
        fingerprint: Hash of everything that decides a reply: a part of each row's id.
        seed: Keys every choice.
        metadata: A style, several that are rendered together, or `mixed`.
        kinds: Samples of each kind for a clip.
        labels: The labels known in this run, sorted.
        source: How the input is read.
        prompts: All prompts.
        shuffle_tags: Whether labels are read in a drawn order, or as the manifest has them.
        clips: Clips of a sample of several.
        pairing: Shares of the strategies by which they are chosen.
        negatives: Shares of the ways in which absent sounds are chosen.
        columns: The manifest's other columns, as the samples carry them (`source_…`), sorted.
        candidates: Absent sounds put to the backbone where it does not name them itself.
        replies: Samples of each prompt.
        ontology: Narrower terms of terms.
        occurrence: How often labels occur, for the ways of `negatives` that ask.
    """

    fingerprint: str
    seed: int
    metadata: MetadataStyle | tuple[MetadataStyle, ...] | Literal["mixed"]
    kinds: Mapping[Kind, float]
    labels: tuple[str, ...]
    source: Source = field(default_factory=Source)
    prompts: tuple[Prompt, ...] = field(default_factory=prompts)
    shuffle_tags: bool = False
    clips: int = 2
    pairing: Mapping[Strategy, float] = field(default_factory=lambda: {"random": 1})
    negatives: Mapping[Negative, float] = field(default_factory=lambda: {"free": 1})
    columns: tuple[str, ...] = ()
    candidates: int = 3
    replies: int = 1
    ontology: Ontology = field(default_factory=dict)
    occurrence: Occurrence = field(default_factory=Occurrence)

    def singles(self) -> list[Kind]:
        """Returns the kinds whose prompts speak of one clip."""
        return [kind for kind in self.kinds if kind not in ABOUT_SEVERAL]

    def groups(self) -> list[Kind]:
        """Returns the kinds whose prompts speak of several."""
        return [kind for kind in self.kinds if kind in ABOUT_SEVERAL]

    def clips_of(self, kind: Kind) -> int:
        """Returns how many clips a sample of a kind has."""
        return self.clips if kind in ABOUT_SEVERAL else 1

    @cached_property
    def paraphrases(self) -> dict[Kind, list[Prompt]]:
        """The prompts of each kind that fit the number of clips.

        Raises:
            UserError: A kind has none.
        """
        found = {
            kind: [prompt for prompt in self.prompts if prompt.kind == kind and prompt.clips <= self.clips_of(kind)]
            for kind in self.kinds
        }
        for kind, fitting in found.items():
            if not fitting and self.kinds[kind]:
                clips = "one clip" if self.clips_of(kind) == 1 else f"{self.clips_of(kind)} clips"
                raise UserError(
                    f"kinds.{kind}: no prompt of this kind fits samples of {clips}; add one to `prompts`, "
                    f"or set kinds.{kind}=0"
                )
        return found

    @cached_property
    def relations(self) -> Relations:
        """What the labels mean to each other."""
        return relate(self.labels, self.ontology)


def read_clip(
    row: dict[str, Any],
    where: str,
    folder: str,
    metadata: MetadataStyle | tuple[MetadataStyle, ...] | Literal["mixed"],
) -> Clip:
    """Checks a manifest row and makes of its audio a reference that can be opened anywhere, slice included.

    Args:
        row: The row as it stands in the manifest.
        where: File and row, for errors.
        folder: Where relative paths of audio start.
        metadata: The style that the run reads, several, or `mixed`.

    Raises:
        UserError: The row can't become samples; names the file, the row and the key.
    """
    clip = validate_clip(row, where)
    audio = clip["audio"]["path"] if isinstance(clip["audio"], dict) else clip["audio"]
    if not audio:
        raise UserError(f"{where}: audio: holds bytes and no path; samples refer to clips by path")
    wanted = STYLES if metadata == "mixed" else metadata if isinstance(metadata, tuple) else (metadata,)
    if not any(has_metadata(clip, style) for style in wanted):
        has = " or ".join(f"metadata={style}" for style in STYLES if has_metadata(clip, style))
        raise UserError(
            f"{where}: {' and '.join(wanted)}: missing, and `metadata` asks for {_any_of(wanted)}; {has} would do"
        )
    try:
        path = absolute_audio(audio, folder)
    except (ValueError, RuntimeError, OSError) as error:  # a NUL in the name, links that lead to each other
        raise UserError(f"{where}: audio: {audio!r}: {error}") from error
    reference = with_slice(path, clip.get("start"), clip.get("duration"))
    return clip | {"audio": reference, "sources": source_columns(row)}


def _any_of(wanted: Sequence[MetadataStyle]) -> str:
    return "it" if len(wanted) == 1 else "one of them"


def samples_of(recipe: Recipe, kind: Kind, clip_id: str) -> int:
    """Returns how many samples of a kind a clip begins: 1.5 is one for every clip and two for every second."""
    share = recipe.kinds[kind]
    more = share % 1 > 0 and unit(recipe.seed, "share", kind, clip_id) < share % 1
    return (math.floor(share) + more) * recipe.replies


def plan_clip(recipe: Recipe, clip: Clip) -> Iterator[Planned]:
    """Yields the samples about one clip."""
    stated = stated_labels(clip, recipe.relations.finder)
    for kind in recipe.singles():
        for number in range(samples_of(recipe, kind, clip["id"])):
            yield _plan(recipe, kind, [clip], number, stated)


def plan_groups(recipe: Recipe, clips: Sequence[Clip]) -> Iterator[Planned]:
    """Yields the samples about several clips of one pool; the order of `clips` does not matter."""
    stated = [stated_labels(clip, recipe.relations.finder) for clip in clips]
    parents = recipe.relations.parents
    wider = [frozenset([*labels, *(p for label in labels for p in parents.get(label, ()))]) for labels in stated]
    for kind in recipe.groups():
        order = ring(recipe.seed, kind, [clip["id"] for clip in clips])
        companions = Companions([stated[i] for i in order], [wider[i] for i in order])
        for place, i in enumerate(order):
            for number in range(samples_of(recipe, kind, clips[i]["id"])):
                places, strategy = _partners(recipe, kind, companions, place, number, clips[i]["id"])
                if places:
                    members = [order[found] for found in places]
                    present = dict.fromkeys(label for member in members for label in stated[member])
                    yield _plan(recipe, kind, [clips[member] for member in members], number, [*present], strategy)


def _partners(
    recipe: Recipe, kind: Kind, companions: Companions, place: int, number: int, clip_id: str
) -> tuple[list[int] | None, str]:
    """Returns the places of a sample's clips, and how they were found: `similar>random` if there are none similar."""
    turn, size = number // recipe.replies, recipe.clips_of(kind)
    strategy = pick(recipe.seed, ("pairing", kind, clip_id, turn), [*recipe.pairing], _weights(recipe.pairing))
    found = companions.find(strategy, place, size, turn, recipe.seed, f"{kind} {clip_id}")
    if found is None and strategy != "random":
        return group(range(len(companions.labels)), place, turn, size), f"{strategy}>random"
    return found, strategy


def user_turn(planned: Planned, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """Returns what the LLM reads: each clip's metadata between its marks, then the prompt."""
    return user_content([span(text, *marks) for text in planned["metadata"]], planned["prompt"])


def stated_labels(clip: Clip, labels: Sequence[str] | Finder) -> list[str]:
    """Returns every label that a clip's metadata states, in whatever form, each once and spelt as in `labels`."""
    find = labels.find if isinstance(labels, Finder) else lambda text: extract_labels(text, labels)
    named = [*clip.get("tags", []), *(event["label"] for event in clip.get("events", [])), clip.get("caption", "")]
    return list(dict.fromkeys(label for text in named if text for label in find(text)))


def _plan(
    recipe: Recipe, kind: Kind, clips: list[Clip], number: int, present: list[str], strategy: str = ""
) -> Planned:
    """Returns one sample: its prompt is what training puts, its metadata what the LLM reads in place of the audio.

    Absent sounds that are put to the LLM stand at the end of the metadata and not in the prompt: so they vanish when
    training replaces the metadata by audio, and the prompt is the same as where the LLM names them itself.
    """
    ids = [clip["id"] for clip in clips]
    turn, reply = divmod(number, recipe.replies)
    prompt, use = _wording(recipe, kind, ids, turn)
    metadata = _metadata(recipe, prompt, clips, turn)
    absent: list[str] = []
    if kind in NAMES_ABSENT:
        way = pick(recipe.seed, ("negatives", kind, *ids, turn), [*recipe.negatives], _weights(recipe.negatives))
        absent, strategy = draw_absent(
            way, present, recipe.labels, recipe.relations, recipe.occurrence, recipe.candidates,
            recipe.seed, kind, *ids, turn,
        )  # fmt: skip
        if absent:
            metadata[-1] = with_absent(metadata[-1], absent)
    return {
        "id": stable_hash(recipe.fingerprint, ids, prompt.id, metadata, use * recipe.replies + reply),
        "kind": kind,
        "clip_ids": ids,
        "audio": [clip["audio"] for clip in clips],
        "metadata": metadata,
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "present": present,
        "strategy": strategy,
        "candidates": absent,
        **{name: [clip["sources"].get(name) for clip in clips] for name in recipe.columns},
    }


def _weights(shares: Mapping[Any, float]) -> list[float] | None:
    return list(shares.values()) if len(shares) > 1 else None


def _wording(recipe: Recipe, kind: Kind, clip_ids: list[str], turn: int) -> tuple[Prompt, int]:
    """Draws a paraphrase, and how often these clips had it before: all are used before one comes again."""
    known = recipe.paraphrases[kind]
    order = shuffled(recipe.seed, ("wording", kind, *clip_ids[:1]), known, [prompt.weight for prompt in known])
    return order[turn % len(known)], turn // len(known)


def _metadata(recipe: Recipe, prompt: Prompt, clips: list[Clip], turn: int) -> list[str]:
    """Renders the clips, in mixed style all in one form that every one of them has, if there is one."""
    rendered = []
    for clip in clips:
        style: MetadataStyle | tuple[MetadataStyle, ...]
        if any(has_metadata(clip, own) for own in prompt.metadata):
            style = prompt.metadata
        elif recipe.metadata == "mixed":
            common = [style for style in STYLES if all(has_metadata(clip, style) for clip in clips)]
            options = common or [style for style in STYLES if has_metadata(clip, style)]
            style = pick(recipe.seed, ("style", prompt.kind, *(clip["id"] for clip in clips), turn), options)
        else:
            style = recipe.metadata
        key = ("order", prompt.kind, clip["id"], turn)
        rendered.append(
            render_metadata(clip, style, lambda labels, key=key: shuffled(recipe.seed, key, labels))  # type: ignore[misc]
            if recipe.shuffle_tags
            else render_metadata(clip, style)
        )
    return rendered
