"""Serving: the trained model behind an OpenAI-compatible endpoint, on vLLM under Ray Serve."""
