"""The benchmarks, one file each. A task is pure: it knows no engine and no endpoint, only rows and replies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from balsa_ray.evaluation.metrics import Metric
from balsa_ray.evaluation.questions import Answer, Question
from balsa_ray.evaluation.tasks import (
    air_bench,
    aqua_bench,
    audio_hallucination,
    audio_hallucination_generative,
    choice,
    clotho_aqa,
    describe,
    edansa,
    existence,
    mmau,
    name_absent,
    nonspeech7k,
    object_attribute,
    object_existence,
    reasoning,
    sakura,
    speech_ifeval,
    synonym_hypernym,
    temporal_order,
    which_recording,
)


class Task(Protocol):
    """What a benchmark's module offers."""

    @property
    def PARSERS(self) -> dict[str, str]:  # noqa: N802 (a module's constant)
        """Block of the scores (`official`, `strict`) to the name and version of its parser."""

    @property
    def NEEDS(self) -> str:  # noqa: N802
        """What `read` wants to find, in words."""

    @property
    def read(self) -> Callable[[Path], Sequence[Any]]:
        """Reads what questions are made from: a manifest, or the published files in a folder."""

    @property
    def plan(self) -> Callable[..., list[Question]]:
        """`plan(rows, seed, **settings)`: the questions about what `read` returned, those about a clip together."""

    def templates_hash(self) -> str:
        """The hash of everything that is asked in words."""

    @property
    def parse(self) -> Callable[[Answer], Any]:
        """The strict reading of a reply, as stored in the predictions."""

    @property
    def correct(self) -> Callable[[Answer, Any], bool | None]:
        """Whether a parsed reply is right; None: that isn't known, as it takes a judge."""

    def judge_prompt(self, answer: Answer) -> str | None:
        """What a judge is asked about an answer, which then has its reply as `judgement`; None: nothing."""

    def score(
        self, answers: Sequence[Answer], generator: np.random.Generator, resamples: int
    ) -> dict[str, dict[str, Metric]]:
        """The metrics of one split, by block."""


TASKS: dict[str, Task] = {
    "existence": existence,
    "describe": describe,
    "name_absent": name_absent,
    "choice": choice,
    "reasoning": reasoning,
    "which_recording": which_recording,
    "audio_hallucination": audio_hallucination,
    "object_existence": object_existence,
    "temporal_order": temporal_order,
    "object_attribute": object_attribute,
    "audio_hallucination_generative": audio_hallucination_generative,
    "aqua_bench": aqua_bench,
    "mmau": mmau,
    "sakura": sakura,
    "air_bench": air_bench,
    "clotho_aqa": clotho_aqa,
    "nonspeech7k": nonspeech7k,
    "edansa": edansa,
    "synonym_hypernym": synonym_hypernym,
    "speech_ifeval": speech_ifeval,
}
