"""What was read over a network, kept in the user's cache folder: listings for an hour, headers for good.

A header is kept as its numbers and its tensor list, without a vocabulary: some 200 kB for 2,000 tensors. Damage
and other formats mean: ask again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan_llama.files import replace_text
from plan_llama.hardware import cache
from plan_llama.models.ggml_types import of_id
from plan_llama.models.gguf import RawHeader
from plan_llama.models.types import Tensor, TensorType

FRESH_S = 3600.0
_FORMAT = 1
_MOST_ENTRIES = 400
_MOST_BYTES = 32 << 20  # of one entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What was kept, and when (seconds since 1970)."""

    value: Any
    kept_at: float

    @property
    def fresh(self) -> bool:
        """Whether it is younger than FRESH_S (and not from the future)."""
        return 0 <= time.time() - self.kept_at < FRESH_S

    @property
    def when(self) -> str:
        """The time in UTC, for people."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.kept_at))


def get(kind: str, key: str) -> Entry | None:
    """The entry of that kind and key; None where there is none or it is damaged."""
    path = _path(kind, key)
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format"] != _FORMAT or kept["key"] != _digest(kind, key):
            return None
        return Entry(value=kept["value"], kept_at=float(kept["kept_at"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def put(kind: str, key: str, value: Any) -> None:
    """Keeps a value that JSON can hold. A folder that cannot be written is no error: it is only a cache."""
    path = _path(kind, key)
    entry = {"format": _FORMAT, "key": _digest(kind, key), "kept_at": time.time(), "value": value}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(entry))
        _prune(path.parent)


def drop(kind: str, key: str) -> None:
    """Forgets an entry that turned out to be wrong."""
    with suppress(OSError):
        _path(kind, key).unlink(missing_ok=True)


def header_value(header: RawHeader) -> dict[str, Any]:
    """A header as JSON can hold it."""
    return {
        "version": header.version,
        "metadata": header.metadata,
        "array_lengths": header.array_lengths,
        "tensors": [
            [tensor.name, tensor.type.id, list(tensor.shape), offset]
            for tensor, offset in zip(header.tensors, header.offsets, strict=True)
        ],
        "alignment": header.alignment,
        "header_bytes": header.header_bytes,
        "data_offset": header.data_offset,
        "data_end": header.data_end,
        "file_bytes": header.file_bytes,
    }


def header_from(value: Any, name: str) -> RawHeader | None:
    """The header of `header_value`, called `name`; None where the value is damaged."""
    try:
        numbers = {
            key: int(value[key])
            for key in ("version", "alignment", "header_bytes", "data_offset", "data_end", "file_bytes")
        }
        metadata = {
            str(key): tuple(item) if isinstance(item, list) else item
            for key, item in value["metadata"].items()
        }
        return RawHeader(
            name=name,
            metadata=metadata,
            array_lengths={str(key): int(count) for key, count in value["array_lengths"].items()},
            tensors=tuple(
                Tensor(str(tensor), _type(kind), tuple(int(size) for size in shape))
                for tensor, kind, shape, _ in value["tensors"]
            ),
            offsets=tuple(int(row[3]) for row in value["tensors"]),
            **numbers,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _type(number: Any) -> TensorType:
    """The type with this number. Raises KeyError where no engine has one: the entry is damaged."""
    found = of_id(number)
    if found is None:
        raise KeyError(number)
    return found


def _digest(kind: str, key: str) -> str:
    """Names the entry; the key itself may hold a signed link."""
    return hashlib.sha256(f"{kind}\n{key}".encode()).hexdigest()


def _path(kind: str, key: str) -> Path:
    return cache.folder() / "remote" / f"{kind}-{_digest(kind, key)[:32]}.json"


def _prune(folder: Path) -> None:
    """The oldest entries go once there are too many."""
    entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".json")]
    if len(entries) <= _MOST_ENTRIES:
        return
    entries.sort(key=lambda entry: entry.stat().st_mtime)
    for entry in entries[: len(entries) - _MOST_ENTRIES * 3 // 4]:
        with suppress(OSError):
            Path(entry.path).unlink(missing_ok=True)
