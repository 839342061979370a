"""Metadata and prompts as the text that the backbone reads in place of audio.

A user turn is the same in both forms: spans first, a line each, then the prompt. In text form a span is
the clip's metadata between two marks; in audio form it is the audio placeholder. Swapping one for the other
is all that training does to the prompt (BALSa, arXiv 2505.20166).
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from balsa_ray.config import Config, UserError
from balsa_ray.identity import stable_hash

MetadataStyle = Literal["tags", "events", "caption", "text"]
STYLES: tuple[MetadataStyle, ...] = get_args(MetadataStyle)
Kind = Literal["present", "absent", "combined", "difference", "joint"]
ABOUT_SEVERAL: tuple[Kind, ...] = ("difference", "joint")
BEGIN, END = "[Begin of audio]", "[End of audio]"
MOST_CLIPS = 8


class Prompt(Config):
    """A user turn without its spans: an entry of a prompts file."""

    id: str = Field(min_length=1, description="stable name, stored with every sample")
    kind: Kind = Field(description="kind of the sample")
    clips: int = Field(ge=1, le=MOST_CLIPS, description="1, or the least number of clips that the words fit")
    text: str = Field(min_length=1, description="the words")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="twice the weight, twice as often the first")
    metadata: tuple[MetadataStyle, ...] = Field((), description="styles; empty: as the run says")


@cache
def prompts() -> tuple[Prompt, ...]:
    """Returns every prompt of the packaged `kinds.yaml`, in the order of the file."""
    return parse_prompts(files("balsa_ray.prompts").joinpath("kinds.yaml").read_text("utf-8"), "kinds.yaml")


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Returns every prompt of a user's file.

    Raises:
        UserError: It can't be read, or is not as `kinds.yaml` says; names the file, the entry and the key.
    """
    try:
        return parse_prompts(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {path}: can't be read: {error}") from error


def parse_prompts(text: str, where: str) -> tuple[Prompt, ...]:
    """Returns the prompts of a YAML text; `where` names it in errors."""
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"prompts: {where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"prompts: {where}: should be a list of entries with id, kind, clips and text")
    found: dict[str, Prompt] = {}
    for number, row in enumerate(rows, start=1):
        name = f" ({row['id']})" if isinstance(row, dict) and row.get("id") else ""
        entry = f"prompts: {where}: entry {number}{name}"
        try:
            prompt = Prompt.model_validate(row)
        except ValidationError as invalid:
            # A misspelt key comes before the one that it leaves missing.
            mistake = min(invalid.errors(), key=lambda found: found["type"] != "extra_forbidden")
            key = ".".join(map(str, mistake["loc"]))
            known = f"; known: {', '.join(Prompt.model_fields)}" if mistake["type"] == "extra_forbidden" else ""
            given = f", not {mistake['input']!r}" if isinstance(mistake["input"], str) and not known else ""
            message = mistake["msg"].removeprefix("Input ")
            raise UserError(f"{entry}: {key + ': ' if key else ''}{message}{given}{known}") from invalid
        if not prompt.text.strip():
            raise UserError(f"{entry}: text: has no words")
        if (prompt.kind in ABOUT_SEVERAL) != (prompt.clips > 1):
            several = "several clips: 2 or more" if prompt.kind in ABOUT_SEVERAL else "one clip: 1"
            raise UserError(f"{entry}: clips: {prompt.kind} is about {several}, not {prompt.clips}")
        if prompt.id in found:
            raise UserError(f"{entry}: id: an earlier entry has it; ids have to be unique")
        found[prompt.id] = prompt
    return tuple(found.values())


def prompts_of(kind: str) -> list[Prompt]:
    """Returns the packaged paraphrases of one kind."""
    return [prompt for prompt in prompts() if prompt.kind == kind]


@cache
def questions() -> dict[str, list[str]]:
    """Returns the question templates of `questions.yaml` by task; `{label}` stands for a sound event."""
    return dict(yaml.safe_load(files("balsa_ray.prompts").joinpath("questions.yaml").read_text("utf-8")))


def prompts_hash(known: Sequence[Prompt]) -> str:
    """Returns the hash of all prompts of a run, a part of every recipe's fingerprint."""
    return stable_hash([prompt.model_dump(mode="json") for prompt in known])


def has_metadata(clip: dict[str, Any], style: MetadataStyle) -> bool:
    """Whether a clip has what a style renders."""
    value = clip.get(style) or (style == "tags" and clip.get("events"))
    return bool(value.strip() if isinstance(value, str) else value)


def render_metadata(
    clip: dict[str, Any],
    style: MetadataStyle | Sequence[MetadataStyle],
    order: Callable[[list[str]], list[str]] = list,
) -> str:
    """Returns a clip's metadata as one line of text.

    Args:
        clip: A manifest row.
        style: `tags` (labels), `events` (labels with times in seconds, by onset), `caption` or `text` (a transcript,
            as words that somebody says); or several of them, of which those are rendered that the clip has.
        order: Puts the labels of `tags` in another order.

    Raises:
        ValueError: If the clip lacks what the style renders.
    """
    if not isinstance(style, str):
        parts = [render_metadata(clip, one, order) for one in style if has_metadata(clip, one)]
        if not parts:
            raise ValueError(f"clip {clip.get('id')!r} has none of {', '.join(style)}")
        return "; ".join([*(part.rstrip(". ") for part in parts[:-1]), parts[-1]])
    if not has_metadata(clip, style):
        raise ValueError(f"clip {clip.get('id')!r} has no {style}")
    if style == "events":
        events = sorted(clip["events"], key=lambda event: (event["start"], event["end"], event["label"]))
        return ", ".join(f"{event['label']} ({event['start']:.1f}-{event['end']:.1f} s)" for event in events)
    if style == "tags":
        return ", ".join(order(labels_of(clip)))
    line = " ".join(str(clip[style]).split())
    return f'somebody says "{line}"' if style == "text" else line


def with_absent(metadata: str, absent: Sequence[str]) -> str:
    """Returns metadata that also lists sounds to be named as absent (guided negatives)."""
    return f"{metadata.rstrip('. ')}; absent: {', '.join(absent)}"


def labels_of(clip: dict[str, Any]) -> list[str]:
    """Returns a clip's labels, each once: its tags, else its strong labels by onset."""
    labels = clip.get("tags") or [e["label"] for e in sorted(clip.get("events") or [], key=lambda e: e["start"])]
    return list(dict.fromkeys(labels))


def span(metadata: str, begin: str = BEGIN, end: str = END) -> str:
    """Returns the text that stands for one clip."""
    return f"{begin} {metadata} {end}"


def user_content(spans: list[str], prompt: str) -> str:
    """Returns a user turn: each clip's span on a line of its own, then the prompt."""
    return "".join(f"{text}\n" for text in spans) + prompt
