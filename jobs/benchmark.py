"""Asks benchmark questions of a served model, or of one without a server, and scores the replies."""

from balsa_ray.config import main
from balsa_ray.evaluation.config import BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    from balsa_ray.evaluation.runner import benchmark

    benchmark(config)


if __name__ == "__main__":
    main(BenchmarkConfig, run)
