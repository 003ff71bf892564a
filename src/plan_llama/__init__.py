"""plan-llama: the command that runs a language model well on a machine, and what it will use."""

__version__ = "0.1.0"
