"""Bulk benchmarking: questions about labelled clips, asked of an OpenAI-compatible endpoint, scored with intervals."""
