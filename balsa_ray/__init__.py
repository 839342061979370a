"""Audio-aware large language models from synthetic data, without catastrophic forgetting, on Ray."""
