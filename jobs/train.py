"""Trains the adapter on synthetic samples: `python jobs/train.py CONFIG.yaml [key=value ...]`."""

from balsa_ray.config import main
from balsa_ray.training.config import TrainConfig


def run(config: TrainConfig) -> None:
    from balsa_ray.training.loop import train

    train(config)


if __name__ == "__main__":
    main(TrainConfig, run)
