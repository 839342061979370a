"""Which replies are fit to train on. Pure functions; every rejected reply has one reason."""

import re
from collections.abc import Sequence

PASSED = "passed"
REASONS = {
    "empty": "the reply has no word",
    "truncated": "the reply was cut off at the longest allowed length",
    "denies_present": "the reply calls a sound absent that the metadata states",
    "misses_present": "the reply names none of the sounds that the metadata states",
    "repeated_item": "a list in the reply names the same thing twice",
}

_SEPARATOR = re.compile(r"[,;\n]|\b(?:and|or|nor)\b", re.IGNORECASE)
_ARTICLES = re.compile(r"^(?:(?:a|an|the|no|some|also|then|[-*•]|\d+[.)])\s+)+", re.IGNORECASE)


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
