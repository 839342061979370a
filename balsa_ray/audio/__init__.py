"""Recordings: decoding to samples, and log-mel features."""
