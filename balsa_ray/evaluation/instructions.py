"""Rules that a reply can be held to without understanding it, as in IFEval (arXiv 2311.07911): those of Speech-IFEval.

Two sets of them. `OFFICIAL` decides as the benchmark's scorer does (github.com/kehanlu/Speech-IFEval), which is
Google's with changes: the case of letters is checked whatever the language; and, as its published reports show though
the code behind them could not be read, bullets may also be "•" or numbers, and every line with words is a paragraph.
Sentences are counted by Punkt, with NLTK's rules and the English model. `STRICT` is ours, and reads the instructions as
they are put to the model in this benchmark:

- a JSON reply is an object or a list, and what is put in << >> or quotes is all of the reply, and not empty;
- keywords are whole words, not patterns;
- only bullets at the outermost level are counted, and only sentences with a word in them;
- words are what white space separates and that has a letter or a digit: "don't" is one;
- paragraphs are parted by empty lines: the lines of a poem are one;
- a curly apostrophe is as good as a straight one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

Arguments = Mapping[str, Any]
Rule = Callable[[str, Arguments], bool]

_FENCES = ("```json", "```Json", "```JSON", "```")
_BULLETS = tuple(
    re.compile(rule, re.MULTILINE) for rule in (r"^\s*\*[^*].*$", r"^\s*-.*$", r"^\s*•.*$", r"^\s*\d+\..*$")
)
_BULLET = re.compile(r"(\s*)(?:[+•]|-(?!-)|\*(?!\*)|\d+[.)])\s*\S")
_IN_ANGLES = re.compile(r"<<[^\n]+>>")
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")


def follows(reply: str, ids: Sequence[str], arguments: Sequence[Arguments], rules: Mapping[str, Rule]) -> list[bool]:
    """Returns for each instruction whether the reply follows it; one without words follows none."""
    return [bool(reply.strip()) and rules[name](reply, given) for name, given in zip(ids, arguments, strict=True)]


def problem(name: Any, given: Any) -> str:
    """Returns what is wrong with an instruction's id and arguments, or ""."""
    if not isinstance(name, str) or name not in ARGUMENTS:
        return f"no rule for {name!r}; known: {', '.join(ARGUMENTS)}"
    for key, fits, told in ARGUMENTS[name]:
        if not isinstance(given, Mapping) or not fits(given.get(key)):
            return f"{name}: {key}: must be {told}"
    return ""


@cache
def _punkt() -> "PunktSentenceTokenizer":
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt import load_model

    # NLTK's own loader fetches the model; this package brings the same, and rules that differ a little from NLTK's.
    model, parameters = load_model("english"), PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    return PunktSentenceTokenizer(parameters)


def sentences(text: str) -> list[str]:
    """Returns the sentences that Punkt finds in an English text."""
    found: list[str] = _punkt().tokenize(text)
    return found


def _count(count: int, least_or_less: str, number: int) -> bool:
    return count < number if least_or_less == "less than" else count >= number


def _unfenced(reply: str) -> str:
    text = reply.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


def _json(reply: str) -> Any:
    try:
        return json.loads(_unfenced(reply))
    except (ValueError, RecursionError):
        return None


def _is_json(reply: str) -> bool:
    try:
        json.loads(_unfenced(reply))
    except (ValueError, RecursionError):
        return False
    return True


def _searched(pattern: str, reply: str) -> bool:
    return re.search(pattern, reply, re.IGNORECASE) is not None


def _whole(words: str, reply: str) -> bool:
    parts = r"\s+".join(map(re.escape, words.translate(_STRAIGHT).split()))
    return _searched(rf"(?<!\w){parts}(?!\w)", reply.translate(_STRAIGHT))


def _outermost_bullets(reply: str) -> int:
    indents = [len(match[1].expandtabs()) for line in reply.splitlines() if (match := _BULLET.match(line))]
    return sum(indent == min(indents) for indent in indents)


def _ends(reply: str, phrase: str) -> bool:
    return reply.strip().strip('"').lower().endswith(phrase.strip().lower())


def _begins(reply: str, phrase: str) -> bool:
    return reply.strip().lower().startswith(phrase.strip().lower())


def _quoted(reply: str) -> bool:
    text = reply.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _between(reply: str, opening: str, closing: str) -> bool:
    text = reply.strip()
    inside = text.removeprefix(opening).removesuffix(closing)
    return len(inside) == len(text) - len(opening) - len(closing) and bool(inside.strip())


OFFICIAL: dict[str, Rule] = {
    "change_case:english_capital": lambda reply, _: reply.isupper(),
    "change_case:english_lowercase": lambda reply, _: reply.islower(),
    "combination:repeat_prompt": lambda reply, given: _begins(reply, given["prompt_to_repeat"]),
    "detectable_format:json_format": lambda reply, _: _is_json(reply),
    "detectable_format:number_bullet_lists": lambda reply, given: (
        sum(len(rule.findall(reply)) for rule in _BULLETS) == given["num_bullets"]
    ),
    "detectable_format:title": lambda reply, _: any(
        title.lstrip("<").rstrip(">").strip() for title in _IN_ANGLES.findall(reply)
    ),
    "keywords:existence": lambda reply, given: all(_searched(word, reply) for word in given["keywords"]),
    "keywords:forbidden_words": lambda reply, given: (
        not any(_searched(rf"\b{word}\b", reply) for word in given["forbidden_words"])
    ),
    "length_constraints:number_paragraphs": lambda reply, given: (
        sum(bool(line.strip()) for line in reply.split("\n")) == given["num_paragraphs"]
    ),
    "length_constraints:number_sentences": lambda reply, given: _count(
        len(sentences(reply)), given["relation"], given["num_sentences"]
    ),
    "length_constraints:number_words": lambda reply, given: _count(
        len(re.findall(r"\w+", reply)), given["relation"], given["num_words"]
    ),
    "startend:end_checker": lambda reply, given: _ends(reply, given["end_phrase"]),
    "startend:quotation": lambda reply, _: _quoted(reply),
}

STRICT: dict[str, Rule] = OFFICIAL | {
    "combination:repeat_prompt": lambda reply, given: _begins(
        reply.translate(_STRAIGHT), given["prompt_to_repeat"].translate(_STRAIGHT)
    ),
    "detectable_format:json_format": lambda reply, _: isinstance(_json(reply), dict | list),
    "detectable_format:number_bullet_lists": lambda reply, given: _outermost_bullets(reply) == given["num_bullets"],
    "detectable_format:title": lambda reply, _: _between(reply, "<<", ">>"),
    "keywords:existence": lambda reply, given: all(_whole(word, reply) for word in given["keywords"]),
    "keywords:forbidden_words": lambda reply, given: not any(_whole(word, reply) for word in given["forbidden_words"]),
    "length_constraints:number_paragraphs": lambda reply, given: (
        sum(bool(block.strip()) for block in re.split(r"\n[^\S\n]*\n", reply)) == given["num_paragraphs"]
    ),
    "length_constraints:number_sentences": lambda reply, given: _count(
        sum(any(map(str.isalnum, sentence)) for sentence in sentences(reply)), given["relation"], given["num_sentences"]
    ),
    "length_constraints:number_words": lambda reply, given: _count(
        sum(any(map(str.isalnum, word)) for word in reply.split()), given["relation"], given["num_words"]
    ),
    "startend:end_checker": lambda reply, given: _ends(
        reply.translate(_STRAIGHT), given["end_phrase"].translate(_STRAIGHT)
    ),
    "startend:quotation": lambda reply, _: _between(reply, '"', '"'),
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_patterns(value: Any) -> bool:
    try:
        return _are_texts(value) and bool([re.compile(word) for word in value])
    except re.error:
        return False


def _is_relation(value: Any) -> bool:
    return value in ("less than", "at least")


_RELATION = ("relation", _is_relation, "less than or at least")
ARGUMENTS: dict[str, tuple[tuple[str, Callable[[Any], bool], str], ...]] = {
    **dict.fromkeys(OFFICIAL, ()),
    "combination:repeat_prompt": (("prompt_to_repeat", _is_text, "a text"),),
    "detectable_format:number_bullet_lists": (("num_bullets", _is_count, "a number"),),
    "keywords:existence": (("keywords", _are_patterns, "a list of texts"),),
    "keywords:forbidden_words": (("forbidden_words", _are_patterns, "a list of texts"),),
    "length_constraints:number_paragraphs": (("num_paragraphs", _is_count, "a number"),),
    "length_constraints:number_sentences": (("num_sentences", _is_count, "a number"), _RELATION),
    "length_constraints:number_words": (("num_words", _is_count, "a number"), _RELATION),
    "startend:end_checker": (("end_phrase", _is_text, "a text"),),
}
"""Instruction to what it is given: name, whether a value fits, and what would."""

GROUPS = {
    "change_case:english_capital": "change_case",
    "change_case:english_lowercase": "change_case",
    "combination:repeat_prompt": "startend",
    "detectable_format:json_format": "json_format",
    "detectable_format:number_bullet_lists": "bullet_lists",
    "detectable_format:title": "wrapping",
    "keywords:existence": "keywords",
    "keywords:forbidden_words": "keywords",
    "length_constraints:number_paragraphs": "length_constraints",
    "length_constraints:number_sentences": "length_constraints",
    "length_constraints:number_words": "length_constraints",
    "startend:end_checker": "startend",
    "startend:quotation": "wrapping",
}
"""Instruction to the group that the published report counts it in."""
