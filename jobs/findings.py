"""Compare ways to make training data, in miniature: python jobs/findings.py CONFIG.yaml [key=value ...]."""

from balsa_ray.config import main
from balsa_ray.findings.config import FindingsConfig


def run(config: FindingsConfig) -> None:
    from balsa_ray.findings.run import Findings

    Findings(config).run()


if __name__ == "__main__":
    main(FindingsConfig, run)
