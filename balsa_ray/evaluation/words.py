"""Other words for labels: names for the same sound and for wider kinds of it, from a file or AudioSet's ontology."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from balsa_ray.config import UserError
from balsa_ray.prompts.labels import normal
from balsa_ray.prompts.relations import Ontology, Relations, read_ontology, relate, synonyms


@dataclass(frozen=True)
class Words:
    """Other words for one label.

    Attributes:
        synonyms: Names for the same sound.
        hypernyms: Names for wider kinds of it.
        near: Wider kinds that it may be taken for.
    """

    synonyms: tuple[str, ...] = ()
    hypernyms: tuple[str, ...] = ()
    near: tuple[str, ...] = ()


@cache
def packaged() -> dict[str, Words]:
    """Returns the words for the packaged lexicon's labels."""
    return _words(yaml.safe_load(files("balsa_ray.evaluation").joinpath("words.yaml").read_text("utf-8")), "words.yaml")


def read_words(path: Path) -> dict[str, Words]:
    """Reads a YAML or JSON file: label to `synonyms` and `hypernyms`, and `near` if wanted, each a list of texts.

    Raises:
        UserError: If it can't be read or is not that; names the file, the label and the key.
    """
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"words: {path}: can't be read: {' '.join(str(error).split())}") from error
    return _words(found, str(path))


def _words(found: Any, where: str) -> dict[str, Words]:
    if not isinstance(found, dict) or not found:
        raise UserError(f"words: {where}: should be a mapping of labels to synonyms and hypernyms")
    out = {}
    for label, entry in found.items():
        if not isinstance(entry, dict):
            raise UserError(f"words: {where}: {label}: should be a mapping with synonyms and hypernyms")
        for key, value in entry.items():
            if key not in ("synonyms", "hypernyms", "near"):
                raise UserError(f"words: {where}: {label}: {key}: unknown key; known: synonyms, hypernyms, near")
            if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
                raise UserError(f"words: {where}: {label}: {key}: should be a list of texts, not {value!r}")
        out[str(label)] = Words(**{key: tuple(value) for key, value in entry.items()})
    return out


class Vocabulary:
    """What the labels of a manifest can be called otherwise, and what a clip with some of them can't be said to lack.

    Args:
        labels: The manifest's.
        table: Words by label, whatever its case.
        ontology: AudioSet's, or {}: parents are further hypernyms, and names that list alternatives further synonyms.
    """

    def __init__(self, labels: Sequence[str], table: Mapping[str, Words], ontology: Ontology) -> None:
        by_name = {normal(label): words for label, words in table.items()}
        self._words = {label: by_name.get(normal(label), Words()) for label in labels}
        if ontology:
            known = relate(labels, ontology)
            self._words = {label: _more(label, words, known) for label, words in self._words.items()}
        wider: dict[str, list[str]] = defaultdict(list, {name: list(below) for name, below in ontology.items()})
        for label, words in self._words.items():
            for name in (*words.hypernyms, *words.near):
                wider[name].append(label)
        implied = relate(labels, wider).implied
        # In the form in which names are compared: the ontology's "Dog" is the hypernym "dog".
        self._implied = {label: frozenset(map(normal, implied[label])) for label in labels}

    def words(self, label: str) -> Words:
        """Returns the other words for a label."""
        return self._words[label]

    def asked(self) -> list[str]:
        """Returns the labels that have both synonyms and hypernyms."""
        return [label for label, words in self._words.items() if words.synonyms and words.hypernyms]

    def deniable(self, present: Iterable[str], label: str) -> tuple[str, ...]:
        """Returns the hypernyms of a label that a clip with the labels `present` can be said to lack, with the label.

        None, if it can't be said to lack the label itself or one of its synonyms.
        """
        words, heard = self._words[label], frozenset().union(*(self._implied[one] for one in present))
        if not heard.isdisjoint(map(normal, (label, *words.synonyms))):
            return ()
        return tuple(name for name in words.hypernyms if normal(name) not in heard)


def vocabulary(labels: Sequence[str], words: str | Path | None, ontology: str | Path | None) -> Vocabulary:
    """Returns the vocabulary of a manifest's labels from the packaged words, or from files.

    Raises:
        UserError: If a file can't be read.
    """
    table = read_words(Path(words)) if words else packaged()
    return Vocabulary(labels, table, read_ontology(Path(ontology)) if ontology else {})


def _more(label: str, words: Words, known: Relations) -> Words:
    """Adds what the ontology and the packaged synonyms know."""
    same = [word for group in synonyms() if normal(label) in map(normal, group) for word in group]
    other = [_plain(part) for part in label.split(",")[1:]]
    names = [word for word in (*words.synonyms, *same, *other) if normal(word) not in ("", normal(label))]
    parents = [_plain(parent.split(",")[0]) for parent in known.parents.get(label, ())]
    return Words(tuple(dict.fromkeys(names)), tuple(dict.fromkeys([*words.hypernyms, *parents])), words.near)


def _plain(name: str) -> str:
    """Returns a name of the ontology as it can stand in a sentence."""
    return re.sub(r"\s*\([^)]*\)", "", name).strip().lower()
