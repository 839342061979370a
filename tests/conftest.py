"""Fixtures of the whole session. Engines and clusters take half a minute to start, so there is one of each."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from tiny_models import tiny_checkpoints, tiny_engine, tiny_model  # noqa: F401 (fixtures)
from training_runs import synthesis_output, train_config  # noqa: F401 (fixtures)

# Before anything imports huggingface_hub, which reads it once: a test must never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray, started by the first test that asks for it and shared by all."""
    from balsa_ray import cluster
    from balsa_ray.serving import haproxy

    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        with haproxy.wanted(), cluster.session():
            yield
