"""Run the whole pipeline in miniature: python jobs/demo.py CONFIG.yaml [key=value ...]."""

from balsa_ray.config import main
from balsa_ray.demo import DemoConfig


def run(config: DemoConfig) -> None:
    from balsa_ray.demo import demo

    demo(config)


if __name__ == "__main__":
    main(DemoConfig, run)
