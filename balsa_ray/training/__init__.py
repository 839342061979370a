"""Training the adapter: a plan of global batches, one step in bare PyTorch, and the loop on Ray Train and DeepSpeed."""
