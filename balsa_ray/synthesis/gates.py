"""Which replies are fit to train on. Pure functions; every rejected reply has one reason, the gravest that holds.

A reply is judged where it arrives, in a batch of whatever replies the engine finished next. The one gate that compares
replies, `near_duplicate`, therefore judges at the end of a run (`duplicates.py`).
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache

from balsa_ray.prompts.render import BEGIN, END

VERSION = 3
"""Goes up when a rule here, or what `prompts.labels` finds, changes: rows that were judged before are then redone."""

PASSED = "passed"
REASONS = {
    "empty": "the reply has no word",
    "truncated": "the reply was cut off at the longest allowed length",
    "loops": "the reply goes round in circles",
    "other_language": "most letters of the reply are of another script than the prompt's",
    "refuses": "the reply declines, or talks of being a language model",
    "speaks_of_metadata": "the reply speaks of tags, metadata, a description or the marks around them",
    "denies_present": "the reply calls a sound absent that the metadata states",
    "denies_implied": "the reply calls absent what the metadata implies (another name, a wider or narrower term)",
    "affirms_absent": "the reply says that a sound is there that it was given as absent",
    "ignores_candidates": "the reply calls none of the sounds absent that it was given as absent",
    "misses_present": "the reply names none of the sounds that the metadata states",
    "repeated_item": "a list in the reply names the same thing twice",
    "near_duplicate": "another reply of this kind about the same clips has the same words",
}

LOOP_WORDS = 8
"""Shorter replies can't be told from a list."""

_SEPARATOR = re.compile(r"[,;\n]|\b(?:and|or|nor)\b")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
_IDIOM = re.compile(r"\b(\w+er|again|more|on|over) and \1\b")  # louder and louder
_WORD = re.compile(r"\w+")
_SMALL_WORDS = frozenset(("a", "an", "the", "no", "some", "also", "then", "and", "or", "nor"))
_ARTICLES = re.compile(r"^(?:(?:a|an|the|no|some|also|then|[-*•]|\d+[.)])\s+)+")
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_ONLY_TEXT = r"listen|process|access|open|play|replay|help|assist|provide|fulfil|comply|analy[sz]e|engage|continue"
_REFUSAL = re.compile(
    r"\b(?:as an? (?:ai|artificial|(?:large )?language|text[- ]based)|language model|i apologi[sz]e"
    rf"|i(?:['’]m| am) (?:an? ai|sorry|(?:unable|not able) to (?:\w+ )?(?:{_ONLY_TEXT}))"
    rf"|i (?:can(?:not|['’]t| not)|could(?: not|n['’]t)|won['’]t|will not) (?:\w+ )?(?:{_ONLY_TEXT})"
    r"|i (?:don['’]t|do not) have (?:access|the (?:ability|capability)|ears|any audio))\b"
)
_LEAK = re.compile(
    r"\b(?:tags|metadata|meta-data|(?:given|provided) (?:text|information|input)"
    r"|(?:the|this|these|your|my|given|provided|audio) (?:(?:given|provided|audio|sound|above|following) )*"
    r"(tag|label|description|caption|annotation|transcript|transcription)s?)\b"
)


def words(reply: str) -> set[str]:
    """Returns the words of a reply in lower case, without articles and the like."""
    return {*_WORD.findall(reply.casefold())} - _SMALL_WORDS


def repeats_an_item(reply: str) -> bool:
    """Whether a list in one sentence has the same item twice ("a siren, a siren and a horn")."""
    for sentence in _SENTENCE_END.split(_IDIOM.sub("", reply.casefold())):
        words = [word for word in _WORD.findall(sentence) if word not in _SMALL_WORDS]
        if len(set(words)) == len(words):  # Most often, and cheaper to see than by the items.
            continue
        first, *items = [_ARTICLES.sub("", item.strip()).strip(" :") for item in _SEPARATOR.split(sentence)]
        items = [item for item in items if item]
        # What leads into the list stands before its first item: "i hear a siren".
        if len(set(items)) < len(items) or any(f" {first}".endswith(f" {item}") for item in items):
            return True
    return False


def loops(reply: str) -> bool:
    """Whether more than half of the runs of four words of a reply have stood in it before."""
    words = reply.casefold().split()
    # A new run of four brings at most one new word.
    if len(words) < LOOP_WORDS or 2 * (len(set(words)) - 3) >= len(words):
        return False
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 2 * len(set(runs)) < len(runs)


def other_script(reply: str, prompt: str) -> bool:
    """Whether fewer than half of a reply's letters are of the script in which most of the prompt is written.

    A check of scripts: it finds Chinese for English, and not Spanish for English. Latin if the prompt has no letter.
    """
    if reply.isascii() and prompt.isascii():
        return False
    wanted = [_script(letter) for letter in prompt if letter.isalpha()] or ["LATIN"]
    script = max(sorted(set(wanted)), key=wanted.count)
    written = [_script(letter) for letter in reply if letter.isalpha()]
    return 2 * written.count(script) < len(written)


def refuses(reply: str) -> bool:
    """Whether a reply declines or talks of being a language model; what it quotes of speech does not count."""
    return bool(_REFUSAL.search(_unquoted(reply)))


def speaks_of_metadata(reply: str, given: Sequence[str], marks: Sequence[str] = (BEGIN, END)) -> bool:
    """Whether a reply shows that text was read.

    Args:
        reply: What the LLM wrote; what it quotes of speech does not count.
        given: Prompt and metadata: a word that stands there is an answer to it ("give one joint caption") or a sound.
        marks: What stands around the metadata.
    """
    text = _unquoted(reply)
    if any(mark.strip() and mark.casefold() in text for mark in marks):
        return True
    leaks = [leak[1] or leak[0] for leak in _LEAK.finditer(text)]
    return bool(leaks) and any(leak not in " ".join(given).casefold() for leak in leaks)


def _unquoted(reply: str) -> str:
    text = " ".join(reply.casefold().split())
    return _QUOTED.sub("", text) if '"' in text or "“" in text else text


def judge(
    kind: str,
    reply: str,
    finish_reason: str,
    present: Sequence[str],
    affirmed: Collection[str],
    denied: Collection[str],
    *,
    implied: Collection[str] = (),
    candidates: Collection[str] = (),
    prompt: str = "",
    metadata: Sequence[str] = (),
    marks: Sequence[str] = (BEGIN, END),
) -> str:
    """Returns `passed`, or the first of `REASONS` that holds.

    Args:
        kind: Kind of the sample.
        reply: What the LLM wrote.
        finish_reason: `stop` or `length`.
        present: Labels that the metadata states.
        affirmed: Labels that the reply says are there.
        denied: Labels that it says are not.
        implied: Those of `affirmed` and `denied` that `present` implies; a reply that affirms one misses nothing.
        candidates: Absent labels that were given to the LLM.
        prompt: The user turn without metadata.
        metadata: What the LLM read of each clip.
        marks: What stood around it.
    """
    if not _WORD.search(reply):
        return "empty"
    if finish_reason == "length":
        return "truncated"
    if loops(reply):
        return "loops"
    if other_script(reply, prompt):
        return "other_language"
    if refuses(reply):
        return "refuses"
    if speaks_of_metadata(reply, (prompt, *metadata), marks):
        return "speaks_of_metadata"
    names_absent = kind in ("absent", "combined")
    if names_absent and not set(present).isdisjoint(denied):
        return "denies_present"
    if names_absent and not set(implied).isdisjoint(denied):
        return "denies_implied"
    if not set(candidates).isdisjoint(affirmed):
        return "affirms_absent"
    if names_absent and candidates and set(candidates).isdisjoint(denied):
        return "ignores_candidates"
    if kind != "absent" and present and {*present, *implied}.isdisjoint(affirmed):
        return "misses_present"
    if repeats_an_item(reply):
        return "repeated_item"
    return PASSED


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    """Returns the script of a letter by its name in Unicode; those that Japanese and Chinese mix are one."""
    script = unicodedata.name(letter, "?").split()[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script
