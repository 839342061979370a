"""Bulk benchmarking: questions about labelled clips, asked of an endpoint or of a model itself, with intervals."""
