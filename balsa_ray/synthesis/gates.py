"""Which replies are fit to train on. Pure functions; every rejected reply has one reason."""

import re
from collections.abc import Sequence

from balsa_ray.prompts.labels import extract_labels

PASSED = "passed"
REASONS = {
    "empty": "the reply has no word",
    "truncated": "the reply was cut off at the longest allowed length",
    "denies_present": "the reply calls a sound absent that the metadata states",
    "misses_present": "the reply names none of the sounds that the metadata states",
    "repeated_item": "a list in the reply names the same thing twice",
}

# Where one statement ends and the next may turn from what is there to what is not.
_CLAUSE = re.compile(r"[.!?;]+(?:\s|$)|\b(?:but|however|although|though|while|whereas)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:no|not|none|never|without|neither|nor|absent|absence|missing|lacks?|lacking|cannot|\w+n['’]t)\b",
    re.IGNORECASE,
)
_AFFIRMATION = re.compile(
    r"\b(?:hears?|heard|there (?:is|are)|contains?|includes?|present|audible|ha[sv]e?)\b", re.IGNORECASE
)
_SEPARATOR = re.compile(r"[,;\n]|\b(?:and|or|nor)\b", re.IGNORECASE)
_ARTICLES = re.compile(r"^(?:(?:a|an|the|no|some|also|then|[-*•]|\d+[.)])\s+)+", re.IGNORECASE)


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


def repeats_an_item(reply: str) -> bool:
    """Whether a list in one sentence has the same item twice ("a siren, a siren and a horn")."""
    for sentence in re.split(r"[.!?]+(?:\s|$)", reply.casefold()):
        first, *items = [_ARTICLES.sub("", item.strip()).strip(" :") for item in _SEPARATOR.split(sentence)]
        items = [item for item in items if item]
        # What leads into the list stands before its first item: "i hear a siren".
        if len(set(items)) < len(items) or any(f" {first}".endswith(f" {item}") for item in items):
            return True
    return False


def judge(
    kind: str, reply: str, finish_reason: str, present: Sequence[str], affirmed: Sequence[str], denied: Sequence[str]
) -> str:
    """Returns `passed`, or the first of `REASONS` that holds.

    Args:
        kind: Kind of the sample.
        reply: What the LLM wrote.
        finish_reason: `stop` or `length`.
        present: Labels that the metadata states.
        affirmed: Labels that the reply says are there.
        denied: Labels that it says are not.
    """
    if not re.search(r"\w", reply):
        return "empty"
    if finish_reason == "length":
        return "truncated"
    if kind in ("absent", "combined") and set(present) & set(denied):
        return "denies_present"
    if kind != "absent" and present and not set(present) & set(affirmed):
        return "misses_present"
    if repeats_an_item(reply):
        return "repeated_item"
    return PASSED
