"""Lets a backbone LLM write training samples: `python jobs/synthesize.py CONFIG.yaml [key=value ...]`."""

from balsa_ray.config import main
from balsa_ray.synthesis.config import SynthesizeConfig


def run(config: SynthesizeConfig) -> None:
    from balsa_ray.synthesis.pipeline import synthesize

    synthesize(config)


if __name__ == "__main__":
    main(SynthesizeConfig, run)
