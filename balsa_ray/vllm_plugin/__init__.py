"""The balsa model as a vLLM plugin."""
