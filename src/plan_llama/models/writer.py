"""Write a spec as a GGUF with a header and no data: llama.cpp's tools plan it as if it were the real file."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plan_llama.errors import InputError
from plan_llama.models import ggml_types
from plan_llama.models.gguf import DEFAULT_ALIGNMENT, MAGIC
from plan_llama.models.tables import TRAIT
from plan_llama.models.types import ModelSpec

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64 = 4, 5, 6, 7, 8, 9, 10, 11
# llama.cpp looks these up in a model with that in its name, and ends without (src/llama-vocab.cpp, b11434).
_PHI3_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>")
_WIDE = re.compile(r"\.ple\.(layer_multipliers|head_offsets|head_vocab_sizes)$")  # read as uint64 arrays only
_CODES = {_U32: "I", _I32: "i", _F32: "f", _BOOL: "?", _U64: "Q", _I64: "q"}


def write_header(spec: ModelSpec, path: Path, *, force: bool = False) -> int:
    """Writes `path` with the header of `spec` and a hole for the data; returns the apparent size in bytes.

    The vocabulary is made up (t0, t1, …): it changes no buffer. The file takes a few MB of disk on file
    systems with sparse files. Raises InputError where the file exists (without `force`) or cannot be
    written.
    """
    if path.exists() and not force:
        raise InputError(f"{path}: is already there", hint="choose another name, or allow overwriting")
    header, data_bytes = _header(spec)
    size = len(header) + data_bytes
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".plan-llama-", suffix=".gguf", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            file.truncate(size)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return size


def _header(spec: ModelSpec) -> tuple[bytes, int]:
    """The header, padded, and the bytes of data that belong behind it."""
    pairs = [_pair(key, value) for key, value in _metadata(spec)]
    infos, offset = [], 0
    for tensor in spec.tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos.append(_text(tensor.name) + shape + struct.pack("<IQ", tensor.type.id, offset))
        offset += _padded(tensor.nbytes)
    start = MAGIC + struct.pack("<IQQ", 3, len(spec.tensors), len(pairs))
    header = b"".join((start, *pairs, *infos))
    return header.ljust(_padded(len(header)), b"\0"), offset


def _metadata(spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    yield "general.architecture", spec.architecture
    projector = spec.architecture == "clip"
    yield "general.type", "mmproj" if projector else "model"
    yield "general.name", spec.name
    file_types = {name: number for number, name in ggml_types.FILE_TYPES.items()}
    if (number := file_types.get(spec.quant.rpartition("-")[2].upper())) is not None:
        yield "general.file_type", number
    yield "general.quantization_version", 2
    for key, value in spec.hparams.items():
        if not key.startswith(TRAIT):  # says which tensors there are; no key of a GGUF
            yield f"{spec.architecture}.{key}", value
    if projector:
        return
    if not spec.vocab_size:
        yield "tokenizer.ggml.model", "none"
        return
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", "default"
    known = _PHI3_TOKENS if re.search("phi-?3", spec.name.lower()) else ()
    made_up = (f"t{index}" for index in range(len(known), spec.vocab_size))
    yield "tokenizer.ggml.tokens", (*known, *made_up)[: spec.vocab_size]
    yield "tokenizer.ggml.token_type", _Ints(spec.vocab_size)
    yield "tokenizer.ggml.merges", ("a b",)
    yield "tokenizer.ggml.bos_token_id", min(1, spec.vocab_size - 1)
    yield "tokenizer.ggml.eos_token_id", min(2, spec.vocab_size - 1)


class _Ints:
    """So many i32 with the value 1 (LLAMA_TOKEN_TYPE_NORMAL)."""

    def __init__(self, count: int) -> None:
        self.count = count


def _pair(key: str, value: Any) -> bytes:
    return _text(key) + _value(key, value)


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, _Ints):
        return struct.pack("<IIQ", _ARRAY, _I32, value.count) + struct.pack("<i", 1) * value.count
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, tuple):
        if value and isinstance(value[0], str):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
        kind = max((_kind(item) for item in value), default=_I32)
        if _WIDE.search(key):
            kind = _U64
        elif kind == _U32 and max(value) < 1 << 31:
            kind = _I32  # how converters write per-layer integers
        return struct.pack(f"<IIQ{len(value)}{_CODES[kind]}", _ARRAY, kind, len(value), *value)
    kind = _kind(value)
    return struct.pack(f"<I{_CODES[kind]}", kind, value)


def _kind(value: float) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, float):
        return _F32
    if value < 0:
        return _I32 if value >= -(1 << 31) else _I64
    return _U32 if value < 1 << 32 else _U64


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
