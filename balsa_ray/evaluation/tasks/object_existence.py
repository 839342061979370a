"""`object_existence`: is there a sound of X, asked of a recording with it and of one without it?

From Kuan and Lee, ICASSP 2025 (arXiv 2410.16130): backgrounds of AudioCaps mixed with events of ESC-50 and VocalSound.
Read is the Hugging Face set Audio-Hallucination_Object-Existence_AudioCaps-ESC50-VocalSound, whose recordings are
published apart from it, as a tar file, BEAF_Audio. `evaluation/yes_no_pairs.py` says what its columns are, what is
official and what is ours. In the release without a column `object` the sound is read from the question: it is for
reports, no figure hangs on it.
"""

import re
from pathlib import Path
from typing import Any

from balsa_ray.evaluation import yes_no_pairs

PARSERS, NEEDS = yes_no_pairs.PARSERS, yes_no_pairs.NEEDS
templates_hash, plan, score = yes_no_pairs.templates_hash, yes_no_pairs.plan, yes_no_pairs.score
parse, correct, judge_prompt = yes_no_pairs.parse, yes_no_pairs.correct, yes_no_pairs.judge_prompt

_SOUND = re.compile(r"\bsound of (.+?)(?: in the audio)?\s*\?", re.IGNORECASE)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the published rows; `yes_no_pairs.read` says the rest."""
    rows = yes_no_pairs.read(path, "object_existence")
    for row in rows:
        if not row.get("object") and (sound := _SOUND.search(row["query"])):
            row["object"] = sound[1]
    return rows
