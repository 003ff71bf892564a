"""Choosing how vLLM runs a checkpoint on a machine: what it refuses to start with, and what is best of the rest."""
