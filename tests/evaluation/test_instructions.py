"""The rules against references in other words, and against the shapes of replies whose verdicts are published."""

import json
import random
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from benchmark_files import awkward_replies

from balsa_ray.evaluation.instructions import ARGUMENTS, GROUPS, OFFICIAL, STRICT, follows, problem, sentences

NUMBER = 10_000
PIECES = [
    *(
        "* ",
        "*",
        "**",
        "- ",
        "-",
        "---",
        "• ",
        "1. ",
        "2.",
        "10) ",
        "\n",
        "\n",
        "\n\n",
        "\t",
        "  ",
        "<<",
        "<",
        ">>",
        ">",
    ),
    *('"', "```", "```json", "DOG", "dog", "Dogs", "wet", "horn", "hot-dog", "dog_", "don’t", "don't", "The end"),
    *("the end.", "Begin:", "BEGIN:", "Ω", "ª", "_", "7", "\x0b", "\u2028", "\r"),
]


def replies(seed: int) -> list[str]:
    return awkward_replies(NUMBER, PIECES, seed)


def is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


def stars(reply: str) -> int:
    """Lines that begin with one star; a star alone on its line takes the next line with it."""
    count, lines, at = 0, reply.split("\n"), 0
    while at < len(lines):
        text = lines[at].lstrip()
        if text == "*" and at + 1 < len(lines):
            count, at = count + 1, at + 1
        elif text[:1] == "*" and text[1:2] not in ("", "*"):
            count += 1
        at += 1
    return count


def bullets(reply: str) -> int:
    others = 0
    for line in reply.split("\n"):
        text = line.lstrip()
        digits = len(text) - len(text.lstrip("0123456789"))
        others += text[:1] in ("-", "•") and bool(text)
        others += digits > 0 and text[digits : digits + 1] == "."
    return stars(reply) + others


def words(reply: str) -> int:
    return sum(is_word_character(b) and not is_word_character(a) for a, b in pairwise(f" {reply}"))


def titled(reply: str) -> bool:
    for line in reply.split("\n"):
        first, last = line.find("<<"), line.rfind(">>")
        if 0 <= first < last - 2 and line[first : last + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def places(word: str, reply: str) -> list[int]:
    lower = [character.lower() if character.isascii() else character for character in reply]
    return [at for at in range(len(reply)) if lower[at : at + len(word)] == list(word)]


def whole_places(word: str, reply: str) -> list[int]:
    def ends(at: int) -> bool:
        return not 0 <= at < len(reply) or not is_word_character(reply[at])

    return [at for at in places(word, reply) if ends(at - 1) and ends(at + len(word))]


def cased(reply: str, kind: str) -> bool:
    kinds = {unicodedata.category(character) for character in reply} & {"Lu", "Ll", "Lt"}
    # Feminine ordinals and the like are lower case without being letters of a case.
    kinds |= {"Ll"} if "ª" in reply else set()
    return kinds == {kind}


REFERENCES: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "change_case:english_capital": ({}, lambda reply: cased(reply, "Lu")),
    "change_case:english_lowercase": ({}, lambda reply: cased(reply, "Ll")),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": " Begin: "},
        lambda reply: reply.strip()[:6] in ("begin:", "Begin:", "BEGIN:"),
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, lambda reply: bullets(reply) == 2),
    "detectable_format:title": ({}, titled),
    "keywords:existence": (
        {"keywords": ["dog", "wet"]},
        lambda reply: bool(places("dog", reply) and places("wet", reply)),
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["dog", "horn"]},
        lambda reply: not whole_places("dog", reply) and not whole_places("horn", reply),
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        lambda reply: len([line for line in reply.split("\n") if line and not line.isspace()]) == 2,
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "at least"},
        lambda reply: words(reply) >= 4,
    ),
    "startend:end_checker": (
        {"end_phrase": "The end"},
        lambda reply: reply.strip().strip('"')[-7:].lower() == "the end",
    ),
    "startend:quotation": (
        {},
        lambda reply: len(reply.strip()) >= 2 and {reply.strip()[0], reply.strip()[-1]} == {'"'},
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_official_rules_are_those_of_a_reference(name: str) -> None:
    given, reference = REFERENCES[name]
    verdicts = []
    for reply in replies(sum(map(ord, name))):
        (found,) = follows(reply, [name], [given], OFFICIAL)
        assert found == (bool(reply.strip()) and reference(reply)), (name, reply)
        verdicts.append(found)
    assert 0 < sum(verdicts) < NUMBER


def test_less_than_is_not_at_most() -> None:
    for name, key in (("number_words", "num_words"), ("number_sentences", "num_sentences")):
        rule = OFFICIAL[f"length_constraints:{name}"]
        for reply, count in (("One.", 1), ("One. Two.", 2)):
            assert rule(reply, {key: count, "relation": "at least"})
            assert not rule(reply, {key: count, "relation": "less than"})
            assert rule(reply, {key: count + 1, "relation": "less than"})


def test_json_is_read_out_of_its_fence() -> None:
    draw = random.Random(0)
    for _ in range(NUMBER):
        value = draw.choice([{"answer": "a"}, [1], "text", 7, None, True, {"a": [{"b": None}]}])
        text, fence = json.dumps(value), draw.choice(["", "```", "```json", "```Json", "```JSON"])
        inside = draw.choice(["", "\n", " "])
        whole = f"{draw.choice(['', ' '])}{fence}{inside}{text}{inside}{'```' if fence else ''}{draw.choice(['', ' '])}"
        broken = draw.choice([f"Here: {whole}", whole + " Done.", whole.replace(text, text + "}"), whole + ","])
        assert OFFICIAL["detectable_format:json_format"](whole, {})
        assert not OFFICIAL["detectable_format:json_format"](broken, {})
        assert STRICT["detectable_format:json_format"](whole, {}) == isinstance(value, dict | list)
    assert not OFFICIAL["detectable_format:json_format"]("[" * 100_000, {})


def test_sentences_are_those_of_another_implementation_of_punkt() -> None:
    """Its rules differ in marks that stand alone and in runs of them; without any the two agree."""
    import punkt

    other = punkt.PunktSentenceTokenizer(punkt.load_model("english"))
    draw = random.Random(0)
    pieces = ["Dr.", "Mr.", "the", "The", "cat", "dog?", "dog!", '"Hi."', "(see", "p.", "3)", "U.S.", "is", "No.", "5."]
    pieces += ["5", "end.", "he", "said.", "i.e.", "e.g.", "\n", "a.m.", "J.", "Smith", "'yes.'", "—", "•", "**Bold**:"]
    for _ in range(NUMBER):
        text = " ".join(draw.choices(pieces, k=draw.randrange(9)))
        assert len(sentences(text)) == len(list(other.tokenize(text))), text


BULLETS, PARAGRAPHS = "detectable_format:number_bullet_lists", "length_constraints:number_paragraphs"
SENTENCES, WORDS = "length_constraints:number_sentences", "length_constraints:number_words"
ONE = {"num_sentences": 2, "relation": "less than"}


@pytest.mark.parametrize(
    ("name", "given", "reply", "verdict"),
    [
        # Shapes of replies whose verdicts stand in the published reports.
        (BULLETS, {"num_bullets": 2}, "Two of them:\n\n• one\n\n• two", True),
        (BULLETS, {"num_bullets": 1}, "• one\n\t+ more of it", True),
        (BULLETS, {"num_bullets": 2}, "Two:\n\n1. one\n2. two", True),
        (BULLETS, {"num_bullets": 2}, "1. **One**\n\t* more\n2. **Two**", False),
        (BULLETS, {"num_bullets": 2}, "**A title:**\n\n• one\n• two", True),
        (PARAGRAPHS, {"num_paragraphs": 3}, "One.\n\nTwo.\n\nThree.", True),
        (PARAGRAPHS, {"num_paragraphs": 1}, "A poem's line,\nand another.", False),
        (SENTENCES, ONE, "Who is Dr. No?", True),
        (SENTENCES, ONE, 'What do you mean by "Who?" - is it a name?', False),
        ("detectable_format:json_format", {}, 'Here it is:\n\n{"a": 1}', False),
        ("change_case:english_lowercase", {}, "mr. gray’s ear, 3 times.", True),
    ],
)
def test_official_verdicts(name: str, given: dict[str, Any], reply: str, verdict: bool) -> None:
    assert follows(reply, [name], [given], OFFICIAL) == [verdict]


@pytest.mark.parametrize(
    ("name", "given", "reply", "official", "strict"),
    [
        ("combination:repeat_prompt", {"prompt_to_repeat": "It’s:"}, "it's: rain", False, True),
        ("detectable_format:json_format", {}, '"rain"', True, False),
        (BULLETS, {"num_bullets": 2}, "- one\n  - a\n- two", False, True),
        (BULLETS, {"num_bullets": 1}, "---\n\n* one\n\n---", False, True),
        (BULLETS, {"num_bullets": 2}, "1) one\n2) two", False, True),
        ("detectable_format:title", {}, "Here: <<rain>>", True, False),
        ("detectable_format:title", {}, "<<rain\nand wind>>", False, True),
        ("detectable_format:title", {}, "<<>>", False, False),
        ("keywords:existence", {"keywords": ["rain"]}, "The train left.", True, False),
        ("keywords:existence", {"keywords": ["Mrs. Horton"]}, "mrs.\nHorton came", False, True),
        ("keywords:existence", {"keywords": ["Mrs. Horton"]}, "mrs! Horton came", True, False),
        ("keywords:forbidden_words", {"forbidden_words": ["ra.n"]}, "rain", False, True),
        (PARAGRAPHS, {"num_paragraphs": 1}, "A line,\nand another.", False, True),
        (PARAGRAPHS, {"num_paragraphs": 2}, "One.\n \n\nTwo.\n", True, True),
        (SENTENCES, ONE, "Really?!", False, True),
        (WORDS, {"num_words": 3, "relation": "less than"}, "I don't!", False, True),
        ("startend:end_checker", {"end_phrase": "That’s it."}, "rain. That's it.", False, True),
        ("startend:quotation", {}, '""', True, False),
        ("startend:quotation", {}, '"rain', False, False),
    ],
)
def test_where_the_strict_rules_differ(
    name: str, given: dict[str, Any], reply: str, official: bool, strict: bool
) -> None:
    assert follows(reply, [name], [given], OFFICIAL) == [official]
    assert follows(reply, [name], [given], STRICT) == [strict]


def test_a_reply_without_words_follows_nothing() -> None:
    given = [{"forbidden_words": ["rain"]}, {"num_words": 9, "relation": "less than"}]
    for rules in (OFFICIAL, STRICT):
        assert follows(" \n", ["keywords:forbidden_words", WORDS], given, rules) == [False, False]


def test_every_rule_has_a_strict_one_a_group_and_arguments() -> None:
    assert set(OFFICIAL) == set(STRICT) == set(GROUPS) == set(ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("keywords:frequency", {}, "no rule for 'keywords:frequency'; known: change_case"),
        (["a"], {}, "no rule for"),
        ("keywords:existence", {}, "keywords:existence: keywords: must be a list of texts"),
        ("keywords:existence", {"keywords": ["("]}, "keywords: must be a list of texts"),
        ("keywords:existence", None, "keywords: must be a list of texts"),
        (WORDS, {"num_words": 3, "relation": "at most"}, "relation: must be less than or at"),
        (WORDS, {"num_words": True, "relation": "at least"}, "num_words: must be a number"),
        ("startend:quotation", {"unused": None}, ""),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: Any, given: Any, message: str) -> None:
    assert message in problem(name, given)
    assert bool(problem(name, given)) == bool(message)
