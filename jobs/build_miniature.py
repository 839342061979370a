"""Build the miniature's checkpoints: python jobs/build_miniature.py CONFIG.yaml [key=value ...]."""

from balsa_ray.config import main
from balsa_ray.miniature.config import BuildMiniatureConfig


def run(config: BuildMiniatureConfig) -> None:
    from balsa_ray.miniature.build import build_miniature

    build_miniature(config)


if __name__ == "__main__":
    main(BuildMiniatureConfig, run)
