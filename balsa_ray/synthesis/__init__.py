"""Synthesis: a manifest of described clips becomes training samples that the backbone LLM wrote itself."""
