"""Serves trained models at an OpenAI-compatible endpoint."""

from balsa_ray.config import main
from balsa_ray.serving.config import ServeConfig


def run(config: ServeConfig) -> None:
    from balsa_ray.serving.server import serve

    serve(config)


if __name__ == "__main__":
    main(ServeConfig, run)
