"""What labels mean to each other: other names for them, wider and narrower terms, siblings."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from balsa_ray.config import UserError
from balsa_ray.prompts.labels import Finder, normal

Ontology = Mapping[str, Sequence[str]]
"""Names of sounds, each with the names of the next narrower ones."""


@dataclass(frozen=True)
class Relations:
    """What is known of the labels of a run.

    Attributes:
        finder: Finds in text the labels, other names for them and plurals, and the names of the ontology.
        implied: For each label what a clip that has it can't be said to lack: the label, other names for it, all wider
            terms (a dog is an animal) and all narrower ones (whoever hears a dog may well hear it bark).
        parents: For each label the next wider terms.
        siblings: For each label the other narrower terms of those, without what it implies.
    """

    finder: Finder
    implied: dict[str, frozenset[str]]
    parents: dict[str, tuple[str, ...]]
    siblings: dict[str, tuple[str, ...]]

    def implies(self, present: Iterable[str], label: str) -> bool:
        """Whether a clip that has the labels `present` can't be said to lack `label`."""
        return bool(self.implied_among(present, (label,)))

    def implied_among(self, present: Iterable[str], labels: Iterable[str]) -> set[str]:
        """Returns those of `labels` that a clip with the labels `present` can't be said to lack."""
        named = {*labels}
        found: set[str] = set()
        for label in present:
            found |= self.implied.get(label, {label}) & named
        return found


def read_ontology(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads AudioSet's `ontology.json`: a list of `{id, name, child_ids, ...}`.

    Raises:
        UserError: The file is missing or is not that; names the entry and the key.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"ontology: {path}: can't be read as JSON: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"ontology: {path}: should be a list of {{id, name, child_ids}}")
    for number, row in enumerate(rows, start=1):
        for key, kind in (("id", str), ("name", str), ("child_ids", list)):
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise UserError(f"ontology: {path}: entry {number}: {key}: missing or not a {kind.__name__}")
    names = {row["id"]: row["name"] for row in rows}
    unknown = next(((row["name"], child) for row in rows for child in row["child_ids"] if child not in names), None)
    if unknown:
        raise UserError(f"ontology: {path}: {unknown[0]!r}: child_ids: {unknown[1]!r} is the id of no entry")
    return {row["name"]: tuple(names[child] for child in row["child_ids"]) for row in rows}


@cache
def synonyms() -> tuple[tuple[str, ...], ...]:
    """Returns the packaged groups of words for the same sound."""
    text = files("balsa_ray.prompts").joinpath("synonyms.yaml").read_text("utf-8")
    return tuple(tuple(group) for group in yaml.safe_load(text))


def relate(labels: Sequence[str], ontology: Ontology) -> Relations:
    """Relates the labels of a run to each other and to the words that may be used for them.

    A label is at home in the ontology by its name, whatever its case. AudioSet's names list alternatives by commas
    ("Baby cry, infant cry") and add what is meant in parentheses; each part is another name, unless two have it.

    Args:
        labels: The labels known in the run: their spelling comes before the ontology's.
        ontology: Of AudioSet, or of anything else; empty if there is none.
    """
    known = [*labels, *ontology, *(child for children in ontology.values() for child in children)]
    names: dict[str, str] = {}
    for label in known:
        names.setdefault(normal(label), label)
    home = {label: names[normal(label)] for label in known}
    everything = list(dict.fromkeys(names.values()))
    same: dict[str, set[str]] = defaultdict(set)
    _name_parts(everything, names, same)
    for group in synonyms():
        meant = list(dict.fromkeys(names[word] for word in map(normal, group) if word in names))
        if meant:
            for label in meant:
                same[label].update(meant)
            for word in group:
                names.setdefault(normal(word), meant[0])
    for name, label in list(names.items()):
        names.setdefault(name[:-1] if name.endswith("s") else f"{name}s", label)
    down: dict[str, set[str]] = defaultdict(set)
    up: dict[str, set[str]] = defaultdict(set)
    for parent, children in ontology.items():
        for child in children:
            down[home[parent]].add(home[child])
            up[home[child]].add(home[parent])
    implied = {label: frozenset(_reach(label, same, up) | _reach(label, same, down)) for label in everything}
    parents = {label: {p for twin in _reach(label, same, {}) for p in up.get(twin, ())} for label in everything}
    siblings = {
        label: {child for parent in parents[label] for child in down[parent]} - implied[label] for label in everything
    }
    return Relations(
        Finder(names | home),
        implied,
        {label: tuple(sorted(found)) for label, found in parents.items()},
        {label: tuple(sorted(found)) for label, found in siblings.items()},
    )


def _name_parts(labels: list[str], names: dict[str, str], same: dict[str, set[str]]) -> None:
    """Adds the parts of names that list several; a part that is a label's whole name makes the two the same."""
    owners: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        parts = [re.sub(r"\s*\([^)]*\)", "", part) for part in label.split(",")]
        for part in {normal(part) for part in parts} - {normal(label), ""}:
            owners[part].append(label)
    for part, found in owners.items():
        if len(found) == 1:
            whole = names.setdefault(part, found[0])
            if whole != found[0]:
                same[whole].add(found[0])
                same[found[0]].add(whole)


def _reach(label: str, same: Mapping[str, set[str]], onward: Mapping[str, set[str]]) -> set[str]:
    """Returns the labels that are the same as `label` or as anything reached from it."""
    found, waiting = {label}, [label]
    while waiting:
        at = waiting.pop()
        new = (same.get(at, set()) | onward.get(at, set())) - found
        found |= new
        waiting += new
    return found
