"""Secrets and names of people are taken out of whatever is printed or packed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_STAR = "***"
_SHORTEST = 4  # of a secret that is looked for as it is: a shorter one is in many words
_NAMES = r"\b(?:(?:[a-z]+[-_])?api[-_]?keys?|(?:hf|auth|access|bearer)[-_]token|password|passwd|secret(?:[-_]key)?)"
_BETWEEN = r"[\"']?\s*[=:]\s*\[?[\"']?"
_SECRET_WORD = re.compile(
    r"(?i)^-{0,2}[\w.-]*(?:api[-_]?keys?|tokens?|secrets?(?:[-_]?key)?|passw(?:or)?d|credentials?)$|^-hft$"
)
_NO_SECRETS = re.compile(r"(?i)-tokens$")  # --image-max-tokens and the like count
_VALUE = r"(?!None\b|null\b|\*\*\*)[^\s\"',;&}\]\[]+"
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, flags), put)
    for pattern, put, flags in (
        # values behind a name that says what they are
        (rf"({_NAMES}{_BETWEEN}){_VALUE}", rf"\1{_STAR}", re.IGNORECASE),
        (rf"([A-Z][A-Z0-9_]*(?:_KEY|_TOKEN|_SECRET|_PASSWORD){_BETWEEN}){_VALUE}", rf"\1{_STAR}", 0),
        (
            r"((?:--api-key|--hf-token|-hft|--token|--password)[\s=]+)(?:'[^']*'|\"[^\"]*\"|\S+)",
            rf"\1{_STAR}",
            0,
        ),
        (
            r"(\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?!\*)[^\"'\r\n]+",
            rf"\1{_STAR}",
            re.IGNORECASE,
        ),
        (r"(\b(?:set-)?cookie[\"']?\s*[:=]\s*[\"']?)(?!\*)[^\"'\r\n]+", rf"\1{_STAR}", re.IGNORECASE),
        (
            r"([?&](?:[\w-]*(?:token|key|secret|signature|sig|auth|policy|credential)|key-pair-id)=)[^&\s\"'<>]+",
            rf"\1{_STAR}",
            re.IGNORECASE,
        ),
        (r"((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}", rf"\1{_STAR}", re.IGNORECASE),
        (r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{12,}", _STAR, 0),
        (r"\bhf_[A-Za-z0-9]{8,}", _STAR, 0),
        (r"\bgh[pousr]_[A-Za-z0-9]{16,}", _STAR, 0),
        (r"\bgithub_pat_[A-Za-z0-9_]{16,}", _STAR, 0),
        (r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*", _STAR, 0),
        (r"\bAKIA[0-9A-Z]{12,}", _STAR, 0),
        (r"([a-z][a-z0-9+.-]*://)[^\s/:@]+:[^\s/@]+@", rf"\1{_STAR}@", re.IGNORECASE),
        (  # a key's body: not a digest, which is lower-case, and not a path
            r"(?<![\w+/=.-])(?=[a-z0-9+/]*[A-Z])(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{60,}={0,2}(?![\w+/=.-])",
            _STAR,
            0,
        ),
        (r"(ssh-(?:rsa|ed25519) )[A-Za-z0-9+/=]{16,}", rf"\1{_STAR}", 0),
        # people
        (r"(/(?:home|Users)/)(?!linuxbrew\b)[^/\s\"':,;]+", r"\1USER", 0),
        (r"((?:[A-Za-z]:)?\\{1,2}Users\\{1,2})[^\\\"':,;<>|]+", r"\1USER", re.IGNORECASE),
        (r"((?:/run)?/media/)[^/\s\"':,;]+(?=/)", r"\1USER", 0),
        (r"\b((?:SUDO_)?USER|LOGNAME|USERNAME)=[^\s\"';]+", r"\1=USER", 0),
        (r"\buid=(\d+)\([^)]*\)", r"uid=\1(USER)", 0),
        (r"(session (?:opened|closed) for user )\S+", r"\1USER", 0),
        (r"(/mnt/[a-z]/Users/)[^/\s\"':,;]+", r"\1USER", re.IGNORECASE),
        (r"\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b", "USER@HOST", re.IGNORECASE),
        (rf"^((?:{'Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec'})\s+\d+ [\d:]+ )\S+", r"\1HOST", 0),
    )
)


_CONTROL = re.compile(
    "\x1b\\[[0-9;?]*[A-Za-z]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)"
)  # colours, titles of windows


def redacted(text: str) -> str:
    """The text without them, and without what steers a terminal: that may also stand inside of a secret."""
    if not text.isprintable():
        text = _CONTROL.sub("", text)
        text = "".join(one if one.isprintable() or one in "\t\n" else "" for one in text)
    for pattern, put in _RULES:
        text = pattern.sub(put, text)
    return text


def redacted_words(words: Iterable[str]) -> list[str]:
    """A command's words without them: a value is a word of its own, whatever is in it."""
    found: list[str] = []
    hidden = False
    for word in words:
        name, equals, value = word.partition("=")
        if hidden:
            found.append(_STAR)
        elif equals and value and _names_secret(name):
            found.append(f"{name}={_STAR}")
        else:
            found.append(redacted(word))
        hidden = not hidden and not equals and word.startswith("-") and _names_secret(word)
    return found


def _names_secret(name: str) -> bool:
    return _SECRET_WORD.match(name) is not None and _NO_SECRETS.search(name) is None


def secret_values(words: Iterable[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of a command that are secrets, the longest first: a program may print them in any form."""
    found = {value for name, value in environment.items() if _names_secret(name)}
    before = ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and _names_secret(name):
            found.add(value)
        if before.startswith("-") and "=" not in before and _names_secret(before):
            found.add(word)
        before = word
    return tuple(sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True))
