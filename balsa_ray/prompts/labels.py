"""Sound-event labels as they occur in free text: the one place where a reply is turned into labels."""

import re
from collections.abc import Iterable
from functools import lru_cache


def extract_labels(text: str, labels: Iterable[str]) -> list[str]:
    """Returns the labels that a text names, in the order in which it names them, repeats included.

    Longest match first ("train whistle" is not also "whistle"), whole words, whatever the case, and whatever the
    white space or hyphen between the words of a label. Knows nothing of negation: a text that lists absent sounds
    yields those.

    Args:
        text: A reply or a part of one.
        labels: The labels to look for.
    """
    pattern, spelling = _pattern(tuple(labels))
    return [spelling[_normal(match)] for match in pattern.findall(text)]


def _normal(label: str) -> str:
    return " ".join(re.split(r"[\s-]+", label.casefold().strip()))


@lru_cache(maxsize=64)
def _pattern(labels: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Returns one alternation of all labels (longest first) and the label that each normal form stands for."""
    spelling = {_normal(label): label for label in labels if label.strip()}
    longest_first = sorted(spelling, key=lambda label: (-len(label), label))
    alternatives = "|".join(r"[\s-]+".join(map(re.escape, label.split(" "))) for label in longest_first)
    return re.compile(rf"(?<!\w)(?:{alternatives or '(?!)'})(?!\w)", re.IGNORECASE), spelling
