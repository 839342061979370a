"""Sound-event labels as they occur in free text: the one place where a reply is turned into labels."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

# Where one statement ends and the next may turn from what is there to what is not.
_CLAUSE = re.compile(r"[.!?;]+(?:\s|$)|\b(?:but|however|although|though|while|whereas)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:no|not|none|never|without|neither|nor|absent|absence|missing|lacks?|lacking|cannot|\w+n['’]t)\b",
    re.IGNORECASE,
)
_AFFIRMATION = re.compile(
    r"\b(?:hears?|heard|there (?:is|are)|contains?|includes?|present|audible|ha[sv]e?)\b", re.IGNORECASE
)


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


def affirmed_and_denied(
    reply: str, labels: Sequence[str], *, about_absent: bool = False
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
    affirmed: list[str] = []
    denied: list[str] = []
    for clause in _CLAUSE.split(reply):
        denial = _DENIAL.search(clause)
        if denial is None:
            affirms = not about_absent or _AFFIRMATION.search(clause)
            (affirmed if affirms else denied).extend(extract_labels(clause, labels))
            continue
        before = extract_labels(clause[: denial.start()], labels)
        after = extract_labels(clause[denial.start() :], labels)
        (affirmed if after else denied).extend(before)
        denied.extend(after)
    return list(dict.fromkeys(affirmed)), list(dict.fromkeys(denied))


def _normal(label: str) -> str:
    return " ".join(re.split(r"[\s-]+", label.casefold().strip()))


@lru_cache(maxsize=64)
def _pattern(labels: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Returns one alternation of all labels (longest first) and the label that each normal form stands for."""
    spelling = {_normal(label): label for label in labels if label.strip()}
    longest_first = sorted(spelling, key=lambda label: (-len(label), label))
    alternatives = "|".join(r"[\s-]+".join(map(re.escape, label.split(" "))) for label in longest_first)
    return re.compile(rf"(?<!\w)(?:{alternatives or '(?!)'})(?!\w)", re.IGNORECASE), spelling
