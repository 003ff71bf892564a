"""Small GGUF files for tests, written byte by byte by the format's description (ggml/docs/gguf.md), so that
a wrong reader cannot be hidden by an equally wrong writer; and the captured headers of real-size models."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ORACLE = Path(__file__).parent / "data" / "oracle"

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q"}
_CODES[F64] = "d"

F32_TYPE, F16_TYPE, Q8_0_TYPE, Q4_K_TYPE = 0, 1, 8, 12

# name, dimensions (ne0 first), ggml type id
TensorRow = tuple[str, Sequence[int], int]

TINY_KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny Llama",
    "general.file_type": 7,
    "llama.block_count": 1,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
}
TINY_TENSORS: list[TensorRow] = [
    ("token_embd.weight", (64, 4), F16_TYPE),
    ("output_norm.weight", (64,), F32_TYPE),
    ("blk.0.attn_q.weight", (64, 64), Q8_0_TYPE),
]
_BLOCKS = {F32_TYPE: (1, 4), F16_TYPE: (1, 2), Q8_0_TYPE: (32, 34), Q4_K_TYPE: (256, 144)}


def text(value: str | bytes) -> bytes:
    """A length-prefixed string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: float) -> bytes:
    """A typed value."""
    return struct.pack("<I" + _CODES[kind], kind, value)


def array(kind: int, values: Sequence[Any], count: int | None = None) -> bytes:
    """A typed array, which may lie about its count."""
    head = struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count)
    if kind == STRING:
        return head + b"".join(map(text, values))
    return head + struct.pack(f"<{len(values)}{_CODES[kind]}", *values)


def value_bytes(value: Any) -> bytes:
    """Raw bytes as they are; else the type that converters use for such a value."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, bool):
        return scalar(BOOL, value)
    if isinstance(value, list):
        kind = STRING if value and isinstance(value[0], str) else I32
        return array(kind, value)
    return scalar(F32 if isinstance(value, float) else U32, value)


def header(
    keys: Mapping[str, Any] | Iterable[tuple[str | bytes, Any]] = TINY_KEYS,
    tensors: Sequence[TensorRow] = TINY_TENSORS,
    *,
    version: int = 3,
    alignment: int = 32,
    tensor_count: int | None = None,
    key_count: int | None = None,
    offsets: Sequence[int] | None = None,
) -> tuple[bytes, int]:
    """(header up to the data, bytes of data behind it). Counts and offsets can be made to lie."""
    pairs = list(keys.items()) if isinstance(keys, Mapping) else list(keys)
    parts = [
        b"GGUF",
        struct.pack("<I", version),
        struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count),
        struct.pack("<Q", len(pairs) if key_count is None else key_count),
    ]
    parts += [text(key) + value_bytes(value) for key, value in pairs]
    offset = 0
    for index, (name, shape, kind) in enumerate(tensors):
        place = offset if offsets is None else offsets[index]
        parts.append(text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", kind, place))
        block, size = _BLOCKS.get(kind, (1, 1))
        elements = 1
        for dim in shape:
            elements *= dim
        offset += -(-(elements // block * size) // alignment) * alignment
    raw = b"".join(parts)
    return raw.ljust(-(-len(raw) // alignment) * alignment, b"\0"), offset


def write(path: Path, *args: Any, data: bool = True, **kwargs: Any) -> Path:
    """A GGUF with real zeros as its data (`data` False: nothing behind the header)."""
    raw, size = header(*args, **kwargs)
    path.write_bytes(raw + b"\0" * (size if data else 0))
    return path


def write_split(folder: Path, stem: str, parts: Sequence[Sequence[TensorRow]], **keys: Any) -> list[Path]:
    """A split model: the metadata in part 1, as llama-gguf-split writes it."""
    total = sum(map(len, parts))
    paths = []
    for number, tensors in enumerate(parts):
        split = {
            "split.no": scalar(U16, number),
            "split.count": scalar(U16, len(parts)),
            "split.tensors.count": scalar(I32, total),
        }
        own = {**TINY_KEYS, **keys} if number == 0 else {}
        path = folder / f"{stem}-{number + 1:05d}-of-{len(parts):05d}.gguf"
        paths.append(write(path, {**own, **split}, tensors))
    return paths


def oracle_index() -> dict[str, dict[str, Any]]:
    """What is known of the captured headers, by name."""
    index: dict[str, dict[str, Any]] = json.loads((ORACLE / "models" / "index.json").read_text())
    return index


def oracle_file(name: str, folder: Path) -> Path:
    """A captured header as a sparse GGUF of its real apparent size."""
    path = folder / f"{name}.gguf"
    with path.open("wb") as file:
        file.write(gzip.decompress((ORACLE / "models" / f"{name}.hdr.gz").read_bytes()))
        file.truncate(oracle_index()[name]["apparent_size"])
    return path
