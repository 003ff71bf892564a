"""How to speak to vLLM: its arguments, the commands of a plan, and reading a command that somebody has."""
