"""Sound-event labels as they occur in free text: the one place where a reply is turned into labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

# Where one statement ends and the next may turn from what is there to what is not. All three are for lower case.
_CLAUSE = re.compile(r"[.!?;]+(?:\s|$)|\b(?:but|however|although|though|while|whereas)\b")
_DENIAL = re.compile(
    r"\b(?:no|not|none|never|without|neither|nor|absent|absence|missing|lacks?|lacking|cannot|\w+n['’]t)\b"
)
_AFFIRMATION = re.compile(r"\b(?:hears?|heard|there (?:is|are)|contains?|includes?|present|audible|ha[sv]e?)\b")
_WORD = re.compile(r"\w+")
_GAP = re.compile(r"[\s-]+")


class Finder:
    """Finds labels in text, in time that does not grow with their number.

    Args:
        words: What to look for, each with the label that it stands for ("dogs": "Dog").
    """

    def __init__(self, words: Mapping[str, str]) -> None:
        self._label = {normal(word).lstrip(" ([{\"'"): label for word, label in words.items()}
        # By first word, longest first: plain data, so that it travels to other processes in milliseconds.
        self._starting: dict[str, list[str]] = {}
        for word in sorted(self._label, key=lambda word: (-len(word), word)):
            if first := _WORD.match(word):
                self._starting.setdefault(first[0], []).append(word)

    def find(self, text: str) -> list[str]:
        """Returns the labels in the order in which the text names them, repeats included."""
        text = normal(text)
        found, end = [], 0
        for word in _WORD.finditer(text):
            start = word.start()
            for name in self._starting.get(word[0], ()) if start >= end else ():
                after = start + len(name)
                if text.startswith(name, start) and not _WORD.match(text, after):
                    found.append(self._label[name])
                    end = after
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
    find = (labels if isinstance(labels, Finder) else _finder(tuple(labels))).find
    affirmed: list[str] = []
    denied: list[str] = []
    for clause in _CLAUSE.split(reply.casefold()):
        denial = _DENIAL.search(clause)
        if denial is None:
            affirms = not about_absent or _AFFIRMATION.search(clause)
            (affirmed if affirms else denied).extend(find(clause))
            continue
        before = find(clause[: denial.start()])
        after = find(clause[denial.start() :])
        (affirmed if after else denied).extend(before)
        denied.extend(after)
    return list(dict.fromkeys(affirmed)), list(dict.fromkeys(denied))


def normal(text: str) -> str:
    """Returns a text in the form in which labels are compared: lower case, one space for white space and hyphens."""
    return _GAP.sub(" ", text.strip().casefold())


@lru_cache(maxsize=64)
def _finder(labels: tuple[str, ...]) -> Finder:
    return Finder({label: label for label in labels})
