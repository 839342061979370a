"""A world small enough to be learned on two CPU cores: its sounds, its words and its two base models."""
