"""What vLLM reserves on each GPU: the checkpoint's share of a rank, the KV cache in blocks, and what is left for it."""
