"""Which runs a comparison is made of."""

from collections.abc import Iterator
from dataclasses import dataclass

from balsa_ray.findings.config import Arm, FindingsConfig

MAIN: tuple[Arm, Arm] = ("present_only", "listen")
"""The comparison that is made everywhere: with and without negatives."""


@dataclass(frozen=True)
class Run:
    """One training and what is asked afterwards.

    Attributes:
        condition: Name of the condition.
        backbone: Index of the backbone.
        seed: Of clips, data and training.
        arm: How the data are made, or trained on.
        steps: Optimizer steps.
        clips: Training clips.
        split: Clips that are asked about: `test`, or `validation` for learning curves.
    """

    condition: str
    backbone: int
    seed: int
    arm: Arm
    steps: int
    clips: int
    split: str = "test"

    @property
    def group(self) -> str:
        """Folder of the clips and data that runs share."""
        return f"{self.condition}/backbone-{self.backbone}/seed-{self.seed}/clips-{self.clips}"

    @property
    def model(self) -> str:
        """Folder of the training, which runs on several splits share."""
        return f"{self.group}/{self.arm}-{self.steps}"

    @property
    def name(self) -> str:
        """Folder of what was asked."""
        return f"{self.model}/{self.split}"


def runs(config: FindingsConfig) -> Iterator[Run]:
    """Yields every run, the first seeds of everything first."""
    base, *others = config.conditions
    for number, seed in enumerate(config.seeds):
        few = number < config.few
        for arm in config.arms:
            if arm in MAIN or few:
                yield Run(base, backbone_of(config, arm), seed, arm, config.steps, config.conditions[base].clips)
        if number < min(config.few, config.curve_seeds):
            for steps, clips in _curve(config, base):
                for arm in MAIN:
                    if arm in config.arms:
                        yield Run(base, 0, seed, arm, steps, clips, "validation")
        if not few:
            continue
        places = [(base, backbone) for backbone in range(1, len(config.backbones))] + [(name, 0) for name in others]
        for name, backbone in places:
            for arm in MAIN:
                if arm in config.arms:
                    yield Run(name, backbone, seed, arm, config.steps, config.conditions[name].clips)


def backbone_of(config: FindingsConfig, arm: Arm) -> int:
    """Returns the index of the backbone on which an arm is compared with `listen`."""
    return len(config.backbones) - 1 if arm == "guided" else 0


def _curve(config: FindingsConfig, base: str) -> Iterator[tuple[int, int]]:
    clips = config.conditions[base].clips
    yield from ((steps, clips) for steps in config.curve_steps)
    yield from ((config.steps, fewer) for fewer in config.curve_clips)
