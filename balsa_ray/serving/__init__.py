"""Serving: the trained model behind an OpenAI-compatible endpoint, on vLLM under Ray Serve."""

from balsa_ray.serving.server import app

__all__ = ["app"]
