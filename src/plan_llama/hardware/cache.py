"""A small TOML cache of slow answers, one file per topic in the user's cache folder.

Damage means: ask again.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from plan_llama.files import replace_text


def folder() -> Path:
    """The user's cache folder of this program; $PLAN_LLAMA_CACHE replaces it."""
    if given := os.environ.get("PLAN_LLAMA_CACHE"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("plan-llama")


def read(topic: str) -> dict[str, Any]:
    """The topic's entries; empty where there are none or the file is damaged (it is only a cache)."""
    try:
        return tomllib.loads((folder() / f"{topic}.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}


def write(topic: str, key: str, entry: dict[str, Any], *, most_entries: int = 32) -> bool:
    """Add an entry, atomically; the oldest beyond `most_entries` go.

    False where the folder cannot be written.
    """
    import tomli_w

    entries = read(topic)
    entries.pop(key, None)
    entries[key] = entry
    kept = dict(list(entries.items())[-most_entries:])
    target = folder() / f"{topic}.toml"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, tomli_w.dumps(kept))
    except OSError:
        return False
    return True
