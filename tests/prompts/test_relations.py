import json
from pathlib import Path
from typing import Any

import pytest

from balsa_ray.config import UserError
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.prompts.relations import read_ontology, relate, synonyms

# In the form and with the names of AudioSet's.
ONTOLOGY = {
    "Animal": ("Domestic animals, pets",),
    "Domestic animals, pets": ("Dog", "Cat"),
    "Dog": ("Bark", "Growling"),
    "Cat": ("Meow",),
    "Bark": (),
    "Growling": (),
    "Meow": (),
    "Human voice": ("Baby cry, infant cry", "Speech"),
    "Baby cry, infant cry": (),
    "Speech": (),
    "Inside, small room": (),
    "Inside, large room": (),
    "Motor vehicle (road)": (),
}
RELATIONS = relate(("Dog", "Meow", "speech", "gunshot"), ONTOLOGY)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dogs and a puppy", ["Dog", "Dog"]),
        ("Speech over SPEECH", ["speech", "speech"]),
        ("an infant cry", ["Baby cry, infant cry"]),
        ("crying baby", ["Baby cry, infant cry"]),
        ("pets", ["Domestic animals, pets"]),
        ("a motor vehicle", ["Motor vehicle (road)"]),
        ("gunfire", ["gunshot"]),
        ("inside", []),  # two have it
    ],
)
def test_other_names_lead_to_the_label(text: str, found: list[str]) -> None:
    assert RELATIONS.finder.find(text) == found


@pytest.mark.parametrize(
    ("present", "label", "implied"),
    [
        ("Dog", "Dog", True),
        ("Dog", "Animal", True),
        ("Dog", "Growling", True),
        ("Bark", "Domestic animals, pets", True),
        ("Animal", "Meow", True),
        ("Dog", "Meow", False),
        ("Bark", "Growling", False),
        ("speech", "Human voice", True),
        ("Inside, small room", "Inside, large room", False),
        ("unheard of", "Dog", False),
        ("unheard of", "unheard of", True),
    ],
)
def test_wider_and_narrower_terms_are_implied_and_siblings_are_not(present: str, label: str, implied: bool) -> None:
    assert RELATIONS.implies(["gunshot", present], label) == implied


def test_parents_and_siblings() -> None:
    assert RELATIONS.parents["Dog"] == ("Domestic animals, pets",)
    assert RELATIONS.siblings["Dog"] == ("Cat",)
    assert RELATIONS.siblings["speech"] == ("Baby cry, infant cry",)
    assert RELATIONS.siblings["gunshot"] == RELATIONS.parents["gunshot"] == ()


def test_no_two_labels_of_the_lexicon_are_called_the_same() -> None:
    relations = relate(lexicon().labels, {})
    for label in lexicon().labels:
        assert {other for other in lexicon().labels if relations.implies([label], other)} == {label}


def test_every_synonym_has_one_meaning() -> None:
    words = [word for group in synonyms() for word in group]
    assert len(words) == len(set(words))
    assert all(word == word.casefold() for word in words)


def test_an_ontology_is_read_by_names(tmp_path: Path) -> None:
    rows = [{"id": "/a", "name": "Dog", "child_ids": ["/b"]}, {"id": "/b", "name": "Bark", "child_ids": []}]
    (tmp_path / "o.json").write_text(json.dumps(rows))
    assert read_ontology(tmp_path / "o.json") == {"Dog": ("Bark",), "Bark": ()}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "can't be read as JSON"),
        ({}, "should be a list"),
        ([{"id": "/a", "child_ids": []}], "entry 1: name: missing or not a str"),
        ([{"id": "/a", "name": "Dog", "child_ids": ["/b"]}], "'Dog': child_ids: '/b' is the id of no entry"),
    ],
)
def test_a_file_that_is_no_ontology_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    (tmp_path / "o.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=f"ontology: .*o.json: {reason}"):
        read_ontology(tmp_path / "o.json")
