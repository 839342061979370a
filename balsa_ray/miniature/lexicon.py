"""The words of the miniature world: sound events, their confusable neighbours, the scenes they occur in."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


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
    """Returns the packaged lexicon.

    Raises:
        ValueError: If a scene names a label that no group has.
    """
    data = yaml.safe_load(files("balsa_ray.miniature").joinpath("lexicon.yaml").read_text("utf-8"))
    group_of = {label: name for name, group in data["groups"].items() for label in group["labels"]}
    synthesised = [label for group in data["groups"].values() if group["synthesised"] for label in group["labels"]]
    scenes = {name: tuple(labels) for name, labels in data["scenes"].items()}
    unknown = {label for labels in scenes.values() for label in labels} - set(group_of)
    if unknown:
        raise ValueError(f"lexicon.yaml: scenes name labels that no group has: {sorted(unknown)}")
    return Lexicon(tuple(group_of), tuple(synthesised), group_of, scenes)
