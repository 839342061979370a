"""Configuration of `jobs/serve.py`: which models, where, for whom."""

import ipaddress
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from balsa_ray.config import Config, Count, count_range
from balsa_ray.engine import EngineConfig


class ServeEngineConfig(EngineConfig):
    """One vLLM engine (a replica) and what it takes from a client."""

    max_clips: int = Field(default=4, ge=1, description="most audio clips in one request")


class ServeConfig(Config):
    """Serves models at an OpenAI-compatible endpoint (Ray Serve, vLLM) until it is told to stop.

    Clients send the key that stands in the environment variable BALSA_API_KEY, or one of those in api_key_file, as a
    bearer token. Without any key the endpoint is open, and only this machine can reach it.
    """

    output: Path = Field(description="folder for server.json: the URL, the models and their fingerprints")
    seed: int = Field(default=0, description="seed of the engines' own random choices")
    model: str = Field(description="model directory (OUTPUT/model of jobs/train.py), hub name or miniature:backbone")
    name: str = Field(default="balsa", min_length=1, description="name by which clients ask for it")
    extra_models: dict[str, str] = Field(default={}, description="further models on the same endpoint, by name")
    host: str = Field(default="127.0.0.1", description="address to listen on; any but this machine's own needs a key")
    port: int = Field(default=8000, ge=0, le=65535, description="port; 0: any free one")
    playground: bool = Field(default=False, description="a page at / on which to ask by hand, with the clients' key")
    api_key_file: Path | None = Field(default=None, description="file with a key on each line")
    max_body_mb: float = Field(default=32.0, gt=0, description="largest request body in MiB")
    allowed_audio_hosts: list[str] = Field(
        default=[], description="hosts from which audio may be fetched by http(s) URL (host or host:port)"
    )
    replicas: Count = Field(
        default=1, description="engines of each model, or the least and the most: as many as its requests keep busy"
    )
    max_waiting: int | None = Field(
        default=None,
        ge=0,
        description="requests that may wait for an engine; more get 429; null: a quarter of engine.max_num_seqs",
    )
    engine: ServeEngineConfig = Field(default_factory=ServeEngineConfig, description="vLLM")

    @field_validator("allowed_audio_hosts")
    @classmethod
    def _hosts(cls, entries: list[str]) -> list[str]:
        from balsa_ray.vllm_plugin.fetch import allowed_host

        return [allowed_host(entry) for entry in entries]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name in self.extra_models:
            raise ValueError(f"extra_models: {self.name!r} is the name of the model itself; choose another")
        return self

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most engines of each model."""
        return count_range(self.replicas)

    @property
    def engine_range(self) -> tuple[int, int]:
        """The least and the most engines of all models together."""
        least, most = self.replica_range
        return least * len(self.models), most * len(self.models)

    @property
    def waiting(self) -> int:
        """Most requests for a model that wait for one of its engines."""
        return self.engine.max_num_seqs // 4 if self.max_waiting is None else self.max_waiting

    @property
    def models(self) -> dict[str, str]:
        """All models by name, the main one first."""
        return {self.name: self.model, **self.extra_models}

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the endpoint."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
