"""From a free reply to an answer that can be scored.

Benchmarks differ by ten points for reasons of parsing alone, so each parser has a name with a version, which goes into
`scores.json`, and a strict one stands beside every official one. A reply that a parser can't read is "" (unparsed):
it counts as wrong and is counted, never guessed.
"""

import re

OFFICIAL_YES_NO = "audio-hallucination-2024/1"
STRICT_YES_NO = "yes-no/1"
WHICH_RECORDING = "which-recording/1"

_LEADING = re.compile(r"\W*(yes|no)\b(?!\s+(?:and|or)\s+(?:yes|no)\b)", re.IGNORECASE)
_STATED = re.compile(r"\banswer\s*(?:is|:)\s*\W*(yes|no)\b(?!\s+(?:and|or)\s+(?:yes|no)\b)", re.IGNORECASE)
_ORDINALS = {
    "first": re.compile(r"\b(?:first|1st)\b|\b(?:recording|audio|clip)\s*(?:1|one|A)\b", re.IGNORECASE),
    "second": re.compile(r"\b(?:second|2nd)\b|\b(?:recording|audio|clip)\s*(?:2|two|B)\b", re.IGNORECASE),
}


def official_yes_no(reply: str) -> str:
    """Returns `yes`, `no` or "" by the rules of the audio object-hallucination benchmark (Interspeech 2024).

    The first rule that fits wins, upper and lower case matter, and parts of words count: "Noise only" is a no,
    "I can see eyes" a yes, and a bare "no" is unparsed. Kept as published, so that scores are comparable.
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
    """Returns `yes` or `no` if the reply begins with that word or says "the answer is ...", else ""."""
    match = _LEADING.match(reply) or _STATED.search(reply)
    return match.group(1).lower() if match else ""


def which_recording(reply: str) -> str:
    """Returns `first`, `second`, `both`, `none` or "" (nothing of the kind, or several of them)."""
    named = [ordinal for ordinal, pattern in _ORDINALS.items() if pattern.search(reply)]
    both = re.search(r"\bboth\b", reply, re.IGNORECASE)
    none = re.search(r"\b(?:none|neither)\b", reply, re.IGNORECASE)
    if both and none:
        return ""
    if both or none:
        return "both" if both else "none"
    return named[0] if len(named) == 1 else ""
