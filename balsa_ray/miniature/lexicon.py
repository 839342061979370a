"""The words of the miniature world: sound events, their confusable neighbours, the scenes they occur in."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from balsa_ray.config import UserError

PACKAGED = Path(__file__).parent / "lexicon.yaml"
_in_use = PACKAGED


@dataclass(frozen=True)
class Lexicon:
    """Sound events and how they relate.

    Attributes:
        labels: Every sound event, in the order of the file.
        synthesised: Those for which `sound_events.py` has a generator.
        group_of: Label to the name of its group of confusable sounds.
        scenes: Scene name to the labels that tend to occur together.
    """

    labels: tuple[str, ...]
    synthesised: tuple[str, ...]
    group_of: dict[str, str]
    scenes: dict[str, tuple[str, ...]]

    def neighbours(self, label: str) -> list[str]:
        """Returns the labels that are easily confused with `label` (none for an unknown label)."""
        group = self.group_of.get(label)
        return [other for other in self.labels if other != label and self.group_of[other] == group]


@cache
def lexicon() -> Lexicon:
    """Returns the lexicon of this process: the packaged one, unless `use_lexicon` named another."""
    return read_lexicon(_in_use)


def use_lexicon(path: Path) -> None:
    """Lets this process go by another lexicon, as the build of another miniature does.

    Raises:
        UserError: As `read_lexicon`.
    """
    global _in_use
    read_lexicon(path)
    _in_use = path
    lexicon.cache_clear()


def read_lexicon(path: Path) -> Lexicon:
    """Reads a lexicon of the packaged one's form.

    Raises:
        UserError: One line that names the file and what is wrong in it.
    """
    from balsa_ray.miniature.sound_events import GENERATORS

    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
    if not _has_the_form(data):
        raise UserError(
            f"{path}: should have `groups`, {{NAME: {{synthesised: true or false, labels: [...]}}}}, and `scenes`, "
            "{NAME: [LABEL, ...]}, as balsa_ray/miniature/lexicon.yaml has"
        )
    groups, scenes = data["groups"], {name: tuple(labels) for name, labels in data["scenes"].items()}
    counts = Counter(label for group in groups.values() for label in group["labels"])
    synthesised = tuple(label for group in groups.values() if group["synthesised"] for label in group["labels"])
    problems = {
        "labels that stand twice": [label for label, count in counts.items() if count > 1],
        "scenes name labels that no group has": sorted({x for labels in scenes.values() for x in labels} - set(counts)),
        "synthesised, but sound_events.py has no generator": sorted(set(synthesised) - set(GENERATORS)),
    }
    for problem, labels in problems.items():
        if labels:
            raise UserError(f"{path}: {problem}: {', '.join(labels)}")
    if len(synthesised) < 4:  # a soundscape may have three
        raise UserError(
            f"{path}: keep the packaged groups that are synthesised: the encoder is built from their sounds"
        )
    group_of = {label: name for name, group in groups.items() for label in group["labels"]}
    return Lexicon(tuple(group_of), synthesised, group_of, scenes)


def _has_the_form(data: Any) -> bool:
    def is_labels(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(x, str) and x.strip() for x in value)

    def is_group(value: Any) -> bool:
        return isinstance(value, dict) and isinstance(value.get("synthesised"), bool) and is_labels(value.get("labels"))

    return (
        isinstance(data, dict)
        and all(isinstance(data.get(key), dict) and data[key] for key in ("groups", "scenes"))
        and all(map(is_group, data["groups"].values()))
        and all(map(is_labels, data["scenes"].values()))
    )
