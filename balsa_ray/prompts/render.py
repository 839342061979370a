"""Metadata and prompts as the text that the backbone reads in place of audio.

A user turn is the same in both forms: spans first, a line each, then the prompt. In text form a span is
the clip's metadata between two marks; in audio form it is the audio placeholder. Swapping one for the other
is all that training does to the prompt (BALSa, arXiv 2505.20166).
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from balsa_ray.identity import stable_hash

MetadataStyle = Literal["tags", "events", "caption"]
BEGIN, END = "[Begin of audio]", "[End of audio]"


@dataclass(frozen=True)
class Prompt:
    """A user turn without its spans.

    Attributes:
        id: Stable name, stored with every sample.
        kind: `present`, `absent`, `combined`, `difference` or `joint`.
        clips: How many clips the prompt speaks of.
        text: The words.
    """

    id: str
    kind: str
    clips: int
    text: str


@cache
def prompts() -> tuple[Prompt, ...]:
    """Returns every prompt of `kinds.yaml`, in the order of the file."""
    rows = yaml.safe_load(files("balsa_ray.prompts").joinpath("kinds.yaml").read_text("utf-8"))
    return tuple(Prompt(**row) for row in rows)


def prompts_of(kind: str) -> list[Prompt]:
    """Returns the paraphrases of one kind."""
    return [prompt for prompt in prompts() if prompt.kind == kind]


@cache
def questions() -> dict[str, list[str]]:
    """Returns the question templates of `questions.yaml` by task; `{label}` stands for a sound event."""
    return dict(yaml.safe_load(files("balsa_ray.prompts").joinpath("questions.yaml").read_text("utf-8")))


def prompts_hash() -> str:
    """Returns the hash of all prompts, a part of every recipe's fingerprint."""
    return stable_hash([[p.id, p.kind, p.clips, p.text] for p in prompts()])


def render_metadata(clip: dict[str, Any], style: MetadataStyle) -> str:
    """Returns a clip's metadata as one line of text.

    Args:
        clip: A manifest row.
        style: `tags` (labels), `events` (labels with times in seconds, by onset) or `caption`.

    Raises:
        ValueError: If the clip lacks what the style renders.
    """
    if style == "events" and clip.get("events"):
        events = sorted(clip["events"], key=lambda event: (event["start"], event["end"], event["label"]))
        return ", ".join(f"{event['label']} ({event['start']:.1f}-{event['end']:.1f} s)" for event in events)
    if style == "tags" and (clip.get("tags") or clip.get("events")):
        return ", ".join(labels_of(clip))
    if style == "caption" and clip.get("caption"):
        return str(clip["caption"])
    raise ValueError(f"clip {clip.get('id')!r} has no {style}")


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
