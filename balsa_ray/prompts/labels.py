"""Sound-event labels as they occur in free text: the one place where a reply is turned into labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

# Where one statement ends and the next may turn from what is there to what is not. All three are for lower case.
_CLAUSE = re.compile(r"[.!?;]+(?:\s|$)|\b(?:but|however|although|though|while|whereas)\b")
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
    unless none comes after it ("rain and a siren are absent").

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
    for clause in filter(None, _CLAUSE.split(normal(reply))):
        denial = _DENIAL.search(clause)
        if denial is None:
            affirms = not about_absent or _AFFIRMATION.search(clause)
            (affirmed if affirms else denied).extend(find(clause))
            continue
        before = find(clause[: denial.start()]) if denial.start() else []
        after = find(clause[denial.start() :])
        (affirmed if after else denied).extend(before)
        denied.extend(after)
    return list(dict.fromkeys(affirmed)), list(dict.fromkeys(denied))


def normal(text: str) -> str:
    """Returns a text in the form in which labels are compared: lower case, one space for white space and hyphens."""
    return " ".join(text.casefold().replace("-", " ").split())


@lru_cache(maxsize=64)
def _finder(labels: tuple[str, ...]) -> Finder:
    return Finder({label: label for label in labels})
