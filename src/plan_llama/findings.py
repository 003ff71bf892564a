"""What a plan or a check has to say beside its numbers. Ids are those of the catalogue of failure modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One observation: what is so, and what to do about it (empty where nothing needs doing)."""

    id: str  # kebab-case
    severity: Severity
    text: str
    fix: str = ""
