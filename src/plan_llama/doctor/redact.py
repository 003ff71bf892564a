"""Secrets and names of people are taken out of whatever is printed or packed."""

from __future__ import annotations

import re

_STAR = "***"
_NAMES = r"\b(?:(?:[a-z]+[-_])?api[-_]?keys?|(?:hf|auth|access|bearer)[-_]token|password|passwd|secret(?:[-_]key)?)"
_BETWEEN = r"[\"']?\s*[=:]\s*\[?[\"']?"
_VALUE = r"(?!None\b|null\b|\*\*\*)[^\s\"',;&}\]\[]+"
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, flags), put)
    for pattern, put, flags in (
        # values behind a name that says what they are
        (rf"({_NAMES}{_BETWEEN}){_VALUE}", rf"\1{_STAR}", re.IGNORECASE),
        (rf"([A-Z][A-Z0-9_]*(?:_KEY|_TOKEN|_SECRET|_PASSWORD){_BETWEEN}){_VALUE}", rf"\1{_STAR}", 0),
        (r"((?:--api-key|--hf-token|-hft|--token)\s+)\S+", rf"\1{_STAR}", 0),
        (r"((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}", rf"\1{_STAR}", re.IGNORECASE),
        (r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{12,}", _STAR, 0),
        (r"\bhf_[A-Za-z0-9]{8,}", _STAR, 0),
        (r"\bgh[pousr]_[A-Za-z0-9]{16,}", _STAR, 0),
        (r"\bgithub_pat_[A-Za-z0-9_]{16,}", _STAR, 0),
        (r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*", _STAR, 0),
        (r"\bAKIA[0-9A-Z]{12,}", _STAR, 0),
        (r"([a-z][a-z0-9+.-]*://)[^\s/:@]+:[^\s/@]+@", rf"\1{_STAR}@", re.IGNORECASE),
        (r"(ssh-(?:rsa|ed25519) )[A-Za-z0-9+/=]{16,}", rf"\1{_STAR}", 0),
        # people
        (r"(/(?:home|Users)/)(?!linuxbrew\b)[^/\s\"':,;]+", r"\1USER", 0),
        (r"((?:[A-Za-z]:)?\\{1,2}Users\\{1,2})[^\\\"':,;<>|]+", r"\1USER", re.IGNORECASE),
        (r"(/mnt/[a-z]/Users/)[^/\s\"':,;]+", r"\1USER", re.IGNORECASE),
        (r"\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b", "USER@HOST", re.IGNORECASE),
        (rf"^((?:{'Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec'})\s+\d+ [\d:]+ )\S+", r"\1HOST", 0),
    )
)


def redacted(text: str) -> str:
    """The text without them."""
    for pattern, put in _RULES:
        text = pattern.sub(put, text)
    return text
