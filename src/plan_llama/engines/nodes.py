"""The machines that run one plan together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """How many, and their addresses, the first one's first; without addresses the commands hold placeholders."""

    count: int = 1
    addresses: tuple[str, ...] = ()

    def address(self, rank: int) -> str:
        """How the others reach a node."""
        return self.addresses[rank] if self.addresses else f"NODE{rank}_IP"

    @property
    def head(self) -> str:
        """How the others reach the first node."""
        return self.address(0)

    def name(self, rank: int) -> str:
        """A node as a heading names it."""
        return f"node {rank} ({self.addresses[rank]})" if self.addresses else f"node {rank}"
