import json
from pathlib import Path

import pytest

from balsa_ray.config import UserError
from balsa_ray.evaluation.words import Words, packaged, read_words, vocabulary
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.prompts.labels import normal

ONTOLOGY = [
    {"id": "1", "name": "Animal", "child_ids": ["2"]},
    {"id": "2", "name": "Domestic animals, pets", "child_ids": ["3", "6"]},
    {"id": "3", "name": "Dog", "child_ids": ["4"]},
    {"id": "4", "name": "Bark", "child_ids": []},
    {"id": "5", "name": "Baby cry, infant cry", "child_ids": []},
    {"id": "6", "name": "Cat", "child_ids": ["7"]},
    {"id": "7", "name": "Meow", "child_ids": []},
    {"id": "8", "name": "Crying, sobbing", "child_ids": ["5"]},
]


def test_the_packaged_words_are_of_labels_of_the_lexicon_and_name_something_else() -> None:
    labels = lexicon().labels
    assert set(packaged()) <= set(labels)
    assert len(packaged()) >= len(labels) - 3
    for label, words in packaged().items():
        assert words.synonyms
        assert words.hypernyms
        assert normal(label) not in map(normal, (*words.synonyms, *words.hypernyms))
        assert set(words.synonyms).isdisjoint(words.hypernyms)
        # No name for one sound is another's, nor a wider kind.
        for other, others in packaged().items():
            if other != label:
                assert set(words.synonyms).isdisjoint({other, *others.synonyms, *others.hypernyms}), (label, other)


def test_what_a_clip_has_is_not_denied_by_another_name() -> None:
    known = vocabulary(lexicon().labels, None, None)
    assert known.deniable(["church bell"], "bicycle bell") == ()
    assert known.deniable(["bird chirping"], "dog barking") == ("dog",)  # but not "animal"
    assert known.deniable(["thunder"], "explosion") == ()  # thunder may be taken for a bang
    assert known.deniable(["rain"], "dog barking") == ("dog", "animal")
    assert known.deniable(["dog barking"], "dog barking") == ()
    assert vocabulary(["dog barking", "animal"], None, None).deniable(["animal"], "dog barking") == ()


def test_a_file_takes_the_place_of_the_packaged_words(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"Bark": {"synonyms": ["woof"], "hypernyms": ["dog"]}, "Hiss": {"synonyms": ["s"]}}))
    known = vocabulary(["bark", "Hiss", "rain"], path, None)
    assert known.asked() == ["bark"]
    assert known.words("bark") == Words(("woof",), ("dog",))


def test_the_ontology_knows_wider_kinds_and_other_names(tmp_path: Path) -> None:
    path = tmp_path / "ontology.json"
    path.write_text(json.dumps(ONTOLOGY))
    known = vocabulary(["Bark", "Meow", "Baby cry, infant cry", "rain"], None, path)
    assert known.words("Bark").hypernyms == ("dog",)
    assert "dog bark" in known.words("Bark").synonyms
    assert known.words("Baby cry, infant cry").synonyms[-1] == "infant cry"
    assert known.words("Baby cry, infant cry").hypernyms == ("crying",)
    assert known.words("rain").hypernyms == ("weather", "water")
    assert known.deniable(["Bark"], "Meow") == ("cat",)
    assert vocabulary(["Bark", "Dog"], None, path).deniable(["Dog"], "Bark") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "should be a mapping of labels"),
        ("rain: [rainfall]", "rain: should be a mapping with synonyms and hypernyms"),
        ("rain: {synonym: [rainfall]}", "rain: synonym: unknown key; known: synonyms, hypernyms, near"),
        ("rain: {synonyms: rainfall}", "rain: synonyms: should be a list of texts, not 'rainfall'"),
        ("rain: {synonyms: ['']}", "rain: synonyms: should be a list of texts"),
        ("{", "can't be read"),
    ],
)
def test_a_bad_file_of_words_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"words: .*words.yaml: {message}"):
        read_words(path)


def test_a_missing_file_of_words_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"words: .*none.yaml: can't be read"):
        read_words(tmp_path / "none.yaml")
