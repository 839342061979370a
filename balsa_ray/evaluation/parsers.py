"""From a free reply to an answer that can be scored.

Benchmarks differ by ten points for reasons of parsing alone, so each parser has a name with a version, which goes into
`scores.json`, and a strict one stands beside every official one. A reply that a parser can't read is "" (unparsed):
it counts as wrong and is counted, never guessed.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from string import ascii_lowercase

OFFICIAL_YES_NO = "audio-hallucination-2024/1"
OFFICIAL_YES_NO_UNKNOWN = "audio-hallucination-2025/1"
STRICT_YES_NO = "yes-no/2"
WHICH_RECORDING = "which-recording/2"
STRICT_OPTION = "option/3"
ONE_WORD = "one-word/1"
AQUA_BENCH = "aqua-bench-2026/1"
MMAU = "mmau-string-match/1"
AIR_BENCH = "air-bench-foundation/1"
JUDGEMENT = "judgement/1"
LISTED = "listed/1"
LABELS = "extract-labels/1"
COUNT_OR_FIRST = "count-or-first/1"

_LEADING = re.compile(
    r"\W*(yes|no)\b(?!\s+(?:and|or)\s+(?:yes|no)\b|\s+(?:doubt|problem|question|wonder|worries)\b)", re.IGNORECASE
)
_STATED = re.compile(r"\banswer\s*(?:is|:)\s*\W*(yes|no)\b(?!\s+(?:and|or)\s+(?:yes|no)\b)", re.IGNORECASE)
_ORDINALS = {
    # Letters are capitals: "in this recording a siren can be heard".
    "first": re.compile(r"(?i:\b(?:first|1st)\b|\b(?:recording|audio|clip)\s*(?:1|one|(?-i:\bA))\b)"),
    "second": re.compile(r"(?i:\b(?:second|2nd)\b|\b(?:recording|audio|clip)\s*(?:2|two|(?-i:\bB))\b)"),
}
_WORD = r"\W*(?:(?:an?|the)\s+\W*)?(\w(?:[\w'’-]*\w)?)\W*"
_ONE_WORD = re.compile(_WORD, re.IGNORECASE)
_STATED_WORD = re.compile(rf"(?:.*\W)?answer\s*(?:is\b\s*:?|:){_WORD}", re.IGNORECASE | re.DOTALL)
_ANSWER_IS = re.compile(
    r"(?<!wrong )(?<!incorrect )\b(?:answer|choice|option)\s*(?:is\b\s*:?|would be\b|:)\W*(?:option\b\W*)?",
    re.IGNORECASE,
)
_FURTHER = re.compile(r"\W*\b(?:and|or)\s+(?:(?:an?|the)\s+)?\W*", re.IGNORECASE)
_STATED_LETTER = re.compile(r"([a-z])(?:\)|(?!\w|['’]\w))(?!\W*\b(?:and|or)\s+\W*[a-z]\b)", re.IGNORECASE)
# What is said not to be it: "not (b)", "isn't a dog". A look behind has to be of one length.
_NOT = "".join(f"(?<!{no} {the})" for no in ("not", "n't", "n’t") for the in ("", "a ", "an ", "the "))
_LETTER_IN_BRACKETS = re.compile(rf"{_NOT}\(([a-z])\)[\s*_]*", re.IGNORECASE)
_AFTER_A_LETTER = re.compile(r"[\s).:*_]*")
_LINE_OF_AN_OPTION = re.compile(r"[^\w(]*\(([a-z])\)[\s*_]*(.*?)[\s*_.!]*", re.IGNORECASE)
_LETTER_ALONE = re.compile(
    r"^[^\w\n]*([A-Za-z])(?:\s*[).:](?!\w)|[^\w\n]*$)"  # begins a line: "b) dog", "B.", or is all of it
    r"|\b(?i:option|choice)\s+([A-Za-z])(?!\w|['’]\w)"
    r"|(?<![\w'’.-])([B-Z])(?![\w'’]|-\w|\.\w)"  # but A, which is also an article,
    r"|(?<![\w'’.-])(A)\W*\Z",  # only at the end
    re.MULTILINE,
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = re.compile(rf"\b(?:\d+|{'|'.join(_NUMBERS)}|zero|none)\b", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•–]+|\d+[.)])\s+")
_AROUND = " \t*_`'\"“”‘’.;"
_JUDGEMENT = re.compile(r"judge?ment\W*(correct|incorrect)\b", re.IGNORECASE)


def official_yes_no(reply: str) -> str:
    """Returns `yes`, `no` or "" by the rules of the audio object-hallucination benchmark (Interspeech 2024).

    The first rule that fits wins, upper and lower case matter, and parts of words count: "Noise only" is a no,
    "I can see eyes" a yes, and a bare "no" is unparsed. Kept as published, so that scores are comparable. The scorer of
    2025 has the same rules and calls what is unparsed "unknown".
    """
    if "Yes" in reply or "yes" in reply:
        return "yes"
    if any(words in reply for words in ("No", "there is no", "does not contain", "doesn't contain")):
        return "no"
    if "contain" in reply:
        return "yes"
    if any(words in reply for words in ("not", "unable", "can't")):
        return "no"
    return ""


def strict_yes_no(reply: str) -> str:
    """Returns `yes` or `no` if the reply begins with that word or says "the answer is ...", else "".

    If it does both, they have to agree.
    """
    leading = _LEADING.match(reply)
    said = {found.lower() for found in [*([leading[1]] if leading else []), *_STATED.findall(reply)]}
    return said.pop() if len(said) == 1 else ""


def which_recording(reply: str) -> str:
    """Returns `first`, `second`, `both`, `none` or "" (nothing of the kind, or several of them).

    Where just one recording is named, "both" and "none" speak of something else: of two sounds, say.
    """
    named = [ordinal for ordinal, pattern in _ORDINALS.items() if pattern.search(reply)]
    both = re.search(r"\bboth\b", reply, re.IGNORECASE)
    none = re.search(r"\bneither\b" if named else r"\b(?:none|neither)\b", reply, re.IGNORECASE)
    if len(named) == 1:
        return "" if none else named[0]
    if both and none:
        return ""
    if both or none:
        return "both" if both else "none"
    return ""


def strict_option(reply: str, choices: Sequence[str]) -> str:
    """Returns the one of several options that a reply decides for, or "" (none, or more than one).

    The first of these that is found at all decides, and names one option or is unparsed: what stands after "the answer
    is"; a line that is an option and nothing else; letters in brackets, as in "(b)"; letters that stand alone; the
    words of an option.

    Args:
        reply: What the model said.
        choices: The options in their order, with or without their own letter before: the first is (a).
    """
    texts = tuple(_without_letter(choice, place) for place, choice in enumerate(choices))
    for reading in (_stated, _lines, _brackets, _alone, _texts):
        if found := set(reading(reply, texts)):
            return choices[found.pop()] if len(found) == 1 else ""
    return ""


def _without_letter(choice: str, place: int) -> str:
    own = re.escape(ascii_lowercase[place]) if place < len(ascii_lowercase) else "(?!)"
    return " ".join(re.sub(rf"^\s*(?:\({own}\)|{own}[).:](?=\s))", "", choice, flags=re.IGNORECASE).split())


def _place(letter: str, texts: Sequence[str]) -> list[int]:
    """Returns which option a letter is, if there is such an option."""
    place = ascii_lowercase.find(letter.lower())
    return [place] if 0 <= place < len(texts) else []


@lru_cache(1024)
def _words_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Returns a pattern of all options, the longest first: where "acoustic guitar" stands, "guitar" does not."""
    each = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile(rf"(?<!\w){_NOT}(?:{'|'.join(map(_pattern, each)) or '(?!)'})(?!\w)", re.IGNORECASE)


def _pattern(text: str) -> str:
    return r"\s+".join(map(re.escape, text.split()))


def _same(words: str, texts: Sequence[str]) -> list[int]:
    """Returns the first option with these words."""
    folded = " ".join(words.split()).lower()
    return [place for place, text in enumerate(texts) if text.lower() == folded][:1]


def _stated(reply: str, texts: tuple[str, ...]) -> Iterator[int]:
    for stated in _ANSWER_IS.finditer(reply):
        start = stated.end()
        article = re.compile(r"(?:an?|the)\s+\W*", re.IGNORECASE).match(reply, start)
        words = _words_of(texts).match(reply, start) or (article and _words_of(texts).match(reply, article.end()))
        letter = _STATED_LETTER.match(reply, start)
        if words:
            yield from _same(words[0], texts)
            if further := _FURTHER.match(reply, words.end()):  # "cat or dog"
                other = _words_of(texts).match(reply, further.end())
                yield from _same(other[0], texts) if other else ()
        elif letter and not (article and (letter[1] == "a" or ":" in stated[0])):
            alone = not letter[0].endswith(")")
            yield from () if alone and letter[1] in _letters_in(texts) else _place(letter[1], texts)


def _lines(reply: str, texts: tuple[str, ...]) -> Iterator[int]:
    for line in reply.splitlines():
        if match := _LINE_OF_AN_OPTION.fullmatch(line):
            for place in _place(match[1], texts):
                if not match[2] or " ".join(match[2].split()).lower() == texts[place].lower().rstrip(".!"):
                    yield place


def _brackets(reply: str, texts: tuple[str, ...]) -> Iterator[int]:
    for match in _LETTER_IN_BRACKETS.finditer(reply):
        yield from _place(match[1], texts)
        yield from _words_at(match.end(), reply, texts)


def _alone(reply: str, texts: tuple[str, ...]) -> Iterator[int]:
    for match in _LETTER_ALONE.finditer(reply):
        letter = next(filter(None, match.groups()))
        if letter not in _letters_in(texts):
            yield from _place(letter, texts)
            yield from _words_at(match.end(), reply, texts)


def _words_at(start: int, reply: str, texts: tuple[str, ...]) -> list[int]:
    """Returns the option whose words follow a letter: another one's in "(d) cat", where (a) is the cat."""
    begin = _AFTER_A_LETTER.match(reply, start)
    words = begin and _words_of(texts).match(reply, begin.end())
    return _same(words[0], texts) if words else []


def _letters_in(texts: tuple[str, ...]) -> set[str]:
    """Returns letters that are words of the options, such as keys of music: alone, these aren't letters of options."""
    return {c for text in texts for word in re.findall(r"\b[B-Z]\b|^\w$", text) for c in (word.lower(), word.upper())}


def _texts(reply: str, texts: tuple[str, ...]) -> Iterator[int]:
    for match in _words_of(texts).finditer(reply):
        yield from _same(match[0], texts)


def aqua_bench_letter(reply: str, options: Sequence[str]) -> str:
    """Returns the letter `A` to `E` that AQUA-Bench's extractor finds in a reply, or "".

    That is the first letter of an option that ends a word, whatever stands before it: "the answer is (b)" is an E, from
    "the", and so an abstention. Without any, the first option whose words stand in the reply. Kept as published.
    """
    said = reply.strip().lower()
    last = chr(ord("a") + len(options) - 1)
    if letter := re.search(rf"[a-{last}](?!\w)", said):
        return letter[0].upper()
    places = [place for place, option in enumerate(options) if option.strip().lower() in said]
    return chr(ord("A") + places[0]) if places else ""


def mmau_match(answer: str, reply: str, choices: Sequence[str]) -> bool:
    """Whether MMAU's matcher takes a reply for right: it has all words of the answer, and none of another option alone.

    So a bare "(b)" is wrong, and so is a right answer that also says what it is not. Kept as published.
    """
    said, right = _tokens(reply), _tokens(answer)
    others = set().union(*map(_tokens, choices)) - right
    return bool(said) and right <= said and not said & others


def _tokens(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def air_bench_letter(reply: str) -> str:
    """Returns the letter `A` to `D` that AIR-Bench's Foundation scorer finds in a reply, or "".

    That is the first character, or else the last but one ("The answer is B."). "An owl" is an A. Kept as published.
    """
    said = reply.strip().replace("\n", "")
    if said == "None":
        return ""
    return next((letter for letter in (said[:1], said[-2:-1]) if letter and letter in "ABCD"), "")


def judgement(reply: str) -> str:
    """Returns `correct`, `incorrect` or "": what a judge says after "Judgement:", the last time it does."""
    found = _JUDGEMENT.findall(reply)
    return found[-1].lower() if found else ""


def listed(reply: str) -> list[str]:
    """Returns what a judge lists, a line or between commas each: in lower case, without bullets, each once.

    "None" and lines that only lead to the list ("Here they are:") are nothing that it lists.
    """
    lines = [line for line in reply.lower().splitlines() if not line.rstrip(" *_").endswith(":")]
    found = (_BULLET.sub("", part).strip(_AROUND) for line in lines for part in line.split(","))
    return list(dict.fromkeys(part for part in found if part and part != "none"))


def number(reply: str) -> str:
    """Returns the number that a reply names, in digits or as a word up to ten, as digits; "" if none or several."""
    words = {found.lower() for found in _NUMBER.findall(reply)}
    numbers = {str(_NUMBERS.index(word)) if word in _NUMBERS else word for word in words}
    numbers = {"0" if one in ("zero", "none") else str(int(one)) for one in numbers}
    return numbers.pop() if len(numbers) == 1 else ""


def one_word(reply: str) -> str:
    """Returns the word that a reply is, or that it says the answer is, in lower case and without article; else ""."""
    said = " ".join(reply.split())
    match = _ONE_WORD.fullmatch(said) or _STATED_WORD.fullmatch(said)
    return match[1].lower() if match else ""
