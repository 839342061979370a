"""Sound-event labels as they occur in free text: the one place where a reply is turned into labels."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

# Where one statement ends and the next may turn from what is there to what is not. All three are for lower case.
# The full stop of "1. rain" ends nothing.
_CLAUSE = re.compile(r"(?<!\b\d)(?<!\b\d\d)[.!?;]+(?:\s|$)|\b(?:but|however|although|though|while|whereas)\b")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_DENIAL = re.compile(
    r"\b(?:no|not|none|never|without|neither|nor|absent|absence|missing|lacks?|lacking|cannot)\b|n['’]t\b"
)
_AFFIRMATION = re.compile(r"\b(?:hears?|heard|there (?:is|are)|contains?|includes?|present|audible|ha[sv]e?)\b")
_WORD = re.compile(r"\w+")


class Finder:
    """Finds labels in text, in time that does not grow with their number.

    Args:
        words: What to look for, each with the label that it stands for ("dogs": "Dog").
    """

    def __init__(self, words: Mapping[str, str]) -> None:
        self._exact = dict(words)
        self._label: dict[str, str] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}
        for word, label in words.items():
            # From the first letter to the last: "frying (food" is found in "frying (food)".
            name = normal(word)
            parts = list(_WORD.finditer(name))
            if parts:
                first, last = parts[0], parts[-1]
                self._label.setdefault(name[first.start() : last.end()], label)
                lengths = {*self._lengths.get(first[0], ()), len(parts)}
                self._lengths[first[0]] = tuple(sorted(lengths, reverse=True))

    def find(self, text: str) -> list[str]:
        """Returns the labels in the order in which the text names them, repeats included."""
        # A tag is most often a label as it stands.
        return [self._exact[text]] if text in self._exact else self.find_normal(normal(text))

    def find_normal(self, text: str) -> list[str]:
        """Returns the same of a text that `normal` returned."""
        words = list(_WORD.finditer(text))
        found, free = [], 0
        for at, word in enumerate(words):
            lengths = self._lengths.get(word[0])
            if lengths is None or at < free:
                continue
            for length in lengths:
                if at + length <= len(words):
                    label = self._label.get(text[word.start() : words[at + length - 1].end()])
                    if label is not None:
                        found.append(label)
                        free = at + length
                        break
        return found


def extract_labels(text: str, labels: Iterable[str]) -> list[str]:
    """Returns the labels that a text names, in the order in which it names them, repeats included.

    Longest match first ("train whistle" is not also "whistle"), whole words, whatever the case, and whatever the
    white space or hyphen between the words of a label. Knows nothing of negation: a text that lists absent sounds
    yields those.

    Args:
        text: A reply or a part of one.
        labels: The labels to look for.
    """
    return _finder(tuple(labels)).find(text)


def affirmed_and_denied(
    reply: str, labels: Sequence[str] | Finder, *, about_absent: bool = False
) -> tuple[list[str], list[str]]:
    """Sorts the labels that a reply names by whether it says that they are there.

    Clause by clause: labels after a word of denial are denied, labels before it affirmed ("rain, but no siren"),
    unless none comes after it ("rain and a siren are absent"). The items of a list stand under its heading.

    Args:
        reply: What the LLM wrote.
        labels: The labels to look for.
        about_absent: The question was which sounds are absent: a bare list is one of absent sounds.

    Returns:
        Affirmed and denied labels, each once and in the order of the reply.
    """
    find = (labels if isinstance(labels, Finder) else _finder(tuple(labels))).find_normal
    affirmed: list[str] = []
    denied: list[str] = []
    for clause in _clauses(reply):
        denial = _DENIAL.search(clause)
        if denial is None:
            affirms = not about_absent or _AFFIRMATION.search(clause)
            (affirmed if affirms else denied).extend(find(clause))
            continue
        before = find(clause[: denial.start()]) if denial.start() else []
        after = find(clause[denial.start() :])
        if before and not after:
            heard, before = _heard_first(clause[: denial.start()], find)
            affirmed.extend(heard)
        (affirmed if after else denied).extend(before)
        denied.extend(after)
    return list(dict.fromkeys(affirmed)), list(dict.fromkeys(denied))


def _clauses(reply: str) -> Iterator[str]:
    """Yields the statements of a reply in normal form; an item of a list has its heading in front."""
    if "\n" not in reply:
        yield from filter(None, _CLAUSE.split(normal(reply)))
        return
    heading = ""
    for line in reply.splitlines():
        text = normal(_ITEM.sub("", line))
        if not text:
            continue
        item = _ITEM.match(line) is not None
        heading = heading if item else text if text.endswith(":") else ""
        for number, clause in enumerate(filter(None, _CLAUSE.split(text))):
            yield f"{heading} {clause}" if item and number == 0 else clause


def _heard_first(text: str, find: Callable[[str], list[str]]) -> tuple[list[str], list[str]]:
    """Parts "i hear rain, a siren is [absent]" behind the part that says what is heard, if others follow it."""
    parts = text.split(",")
    last = max((place for place, part in enumerate(parts) if _AFFIRMATION.search(part)), default=-1)
    heard, rest = find(",".join(parts[: last + 1])), find(",".join(parts[last + 1 :]))
    return (heard, rest) if rest else ([], heard)


def normal(text: str) -> str:
    """Returns a text in the form in which labels are compared: lower case, one space for white space and hyphens."""
    return " ".join(text.casefold().replace("-", " ").split())


@lru_cache(maxsize=64)
def _finder(labels: tuple[str, ...]) -> Finder:
    return Finder({label: label for label in labels})
