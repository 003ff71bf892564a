"""Read the header of a GGUF file: metadata and the list of tensors, never their data and never a vocabulary.

The checks are those of gguf_init_from_reader in llama.cpp b11434 (ggml/src/gguf.cpp), plus bounds that keep
memory and time small whatever a file claims about itself.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.ggml_types import BY_ID, REMOVED, of_id
from plan_llama.models.types import Tensor

# read_at(offset, size): up to `size` bytes from `offset`; fewer only at the end of the file.
ReadAt = Callable[[int, int], bytes]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less the end mark

# Bounds of ours, far above every model in use (the largest has about 20,000 tensors and 1,000,000 strings).
_MAX_KEYS = 16_384
_MAX_TENSORS = 65_536
_MAX_STRINGS = 4_000_000
_MAX_KEY_BYTES = 4_096
_MAX_KEPT_STRING = 65_536
_MAX_KEPT_BYTES = 8 << 20
_MAX_KEPT_ARRAY = 4_096
_MAX_ALIGNMENT = 1 << 20
_MAX_TENSOR_BYTES = 1 << 60
_WINDOW = 1 << 20

_STRING, _ARRAY = 8, 9
# GGUF value type → struct code
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_TAILS = tuple(struct.Struct(f"<{dims}QIQ") for dims in range(MAX_DIMS + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class RawHeader:
    """What one GGUF file says about itself.

    `metadata` has every value that is kept: numbers, strings and short numeric arrays (tuples). Every
    array's length is in `array_lengths`, also of those not kept. `offsets` are relative to `data_offset`,
    in bytes.
    """

    name: str
    version: int
    metadata: dict[str, Any]
    array_lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    offsets: tuple[int, ...]
    alignment: int
    header_bytes: int  # up to the end of the tensor list
    data_offset: int
    data_end: int  # where the last tensor ends, if all data were there
    file_bytes: int  # the size of the file as it is
    hole_bytes: int = 0  # of the data, what is a hole in a sparse file

    @property
    def data_there(self) -> int:
        """Bytes of the file that are really there, of `data_end` wanted."""
        return max(0, min(self.file_bytes, self.data_end) - self.hole_bytes)


class _Reader:
    """A window over the file that moves forward only; `data[pos]` is the next byte."""

    def __init__(self, read_at: ReadAt, size: int, name: str, window: int) -> None:
        self._read_at = read_at
        self._window = window
        self.size = size
        self.name = name
        self.data = b""
        self.base = 0
        self.pos = 0

    @property
    def offset(self) -> int:
        return self.base + self.pos

    def fail(self, message: str) -> ModelError:
        return ModelError(f"{self.name}: {message}")

    def cut(self, wanted: int, what: str) -> ModelError:
        return ModelError(
            f"{self.name}: the header is cut: {what} needs {wanted:,} bytes at offset {self.offset:,}, "
            f"and the file has {self.size:,} bytes",
            hint="download or copy the file again",
        )

    def need(self, count: int, what: str) -> None:
        """Makes `count` bytes available at `pos`."""
        if self.pos + count <= len(self.data):
            return
        offset = self.offset
        if offset + count > self.size:
            raise self.cut(count, what)
        data = self._read_at(offset, max(count, self._window))
        if len(data) < count:  # the file shrank meanwhile
            raise self.cut(count, what)
        self.data, self.base, self.pos = data, offset, 0

    def skip(self, count: int, what: str) -> None:
        if self.offset + count > self.size:
            raise self.cut(count, what)
        self.pos += count

    def u32(self, what: str) -> int:
        self.need(4, what)
        value: int = _U32.unpack_from(self.data, self.pos)[0]
        self.pos += 4
        return value

    def u64(self, what: str) -> int:
        self.need(8, what)
        value: int = _U64.unpack_from(self.data, self.pos)[0]
        self.pos += 8
        return value

    def raw(self, count: int, what: str) -> bytes:
        self.need(count, what)
        value = self.data[self.pos : self.pos + count]
        self.pos += count
        return value

    def name_of(self, limit: int, what: str) -> str:
        """A key or a tensor's name: short, printable UTF-8."""
        start = self.offset
        length = self.u64(what)
        if not 0 < length <= limit:
            raise self.fail(f"{what} at offset {start:,} has {length:,} bytes, expected 1 to {limit:,}")
        raw = self.raw(length, what)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text.isprintable() or not text:
            raise self.fail(f"{what} at offset {start:,} is not printable text: {raw[:40]!r}")
        return text

    def skip_strings(self, count: int, what: str) -> None:
        """Steps over length-prefixed strings; the hot loop of a header, one pass per window."""
        unpack = _U64.unpack_from
        left = count
        while left:
            self.need(8, what)
            data, pos = self.data, self.pos
            index = left
            try:
                for index in range(left, 0, -1):  # noqa: B007  index is what the except branch needs
                    pos += 8 + unpack(data, pos)[0]
                left = 0
            except (struct.error, OverflowError):  # the next length is outside this window
                left = index
            self.pos = pos
            if self.offset > self.size:
                raise self.fail(
                    f"the header is cut or wrong: a string of {what} ends at offset {self.offset:,}, "
                    f"and the file has {self.size:,} bytes"
                )


def read_header(read_at: ReadAt, size: int, name: str, *, window: int = _WINDOW) -> RawHeader:
    """The header behind `read_at`, of a file of `size` bytes that messages call `name`.

    It is read forwards, `window` bytes at a time or more where one value needs more.

    Raises ModelError, in one line with the offset, for everything that is not a whole header of GGUF 2 or 3.
    """
    reader = _Reader(read_at, size, name, window)
    version = _version(reader)
    tensor_count = _count(reader, "number of tensors", _MAX_TENSORS)
    key_count = _count(reader, "number of keys", _MAX_KEYS)
    metadata, lengths = _metadata(reader, key_count)
    alignment = _alignment(reader, metadata)
    tensors, offsets = _tensors(reader, tensor_count)
    header_bytes = reader.offset
    data_offset = -(-header_bytes // alignment) * alignment if tensors else header_bytes
    return RawHeader(
        name=name,
        version=version,
        metadata=metadata,
        array_lengths=lengths,
        tensors=tensors,
        offsets=offsets,
        alignment=alignment,
        header_bytes=header_bytes,
        data_offset=data_offset,
        data_end=data_offset + _check_offsets(reader, tensors, offsets, alignment),
        file_bytes=size,
    )


def read_file(path: Path) -> RawHeader:
    """The header of a GGUF on disk. Raises ModelError, also for what is not a readable regular file."""
    name = str(path)
    try:
        # A pipe would block on open.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{name}: not a file", hint="give a .gguf file")
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            facts = os.fstat(descriptor)

            def read_at(offset: int, size: int) -> bytes:
                file.seek(offset)
                return file.read(size)

            header = read_header(read_at, facts.st_size, name)
            holes = _holes(descriptor, header.data_offset, facts)
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL in the path
        raise ModelError(f"{name}: not a usable path ({error})") from error
    if holes:
        from dataclasses import replace

        return replace(header, hole_bytes=holes)
    return header


def _holes(descriptor: int, start: int, facts: os.stat_result) -> int:
    """Bytes of the data that the file system holds no blocks for; 0 where it cannot say.

    Few blocks alone prove nothing (a compressing file system has few, too), so the holes are asked for.
    """
    size = facts.st_size
    blocks = getattr(facts, "st_blocks", None)
    if blocks is None or blocks * 512 >= size or not hasattr(os, "SEEK_HOLE"):
        return 0
    found, position = 0, start
    try:
        for _ in range(1000):
            if position >= size:
                break
            hole = os.lseek(descriptor, position, os.SEEK_HOLE)
            if hole >= size:
                break
            try:
                position = os.lseek(descriptor, hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: no data behind this hole
                    raise
                position = size
            found += position - hole
    except OSError:
        return 0  # a file system without this question
    return found


def _version(reader: _Reader) -> int:
    magic = reader.raw(4, "the magic 'GGUF'")
    if magic != MAGIC:
        if magic[::-1] == MAGIC:
            raise reader.fail(
                "a big-endian GGUF, which current llama.cpp cannot read on this kind of machine"
            )
        raise ModelError(
            f"{reader.name}: not a GGUF file (it starts with {magic!r}, expected {MAGIC!r})",
            hint="give a .gguf file",
        )
    version = reader.u32("the version")
    if version and version & 0xFFFF == 0:
        raise ModelError(
            f"{reader.name}: a big-endian GGUF (version field {version:#010x}), expected a little-endian one",
            hint="get the little-endian file, which every publisher offers",
        )
    if version == 1:
        raise ModelError(
            f"{reader.name}: GGUF version 1, which llama.cpp has not read since 2023, expected 2 or 3",
            hint="get a newer file of this model",
        )
    if version not in (2, 3):
        raise reader.fail(f"GGUF version {version}, expected 2 or 3 (offset 4)")
    return version


def _count(reader: _Reader, what: str, most: int) -> int:
    start = reader.offset
    count = reader.u64(f"the {what}")
    if count > most:
        raise reader.fail(f"the {what} at offset {start:,} is {count:,}, expected at most {most:,}")
    return count


def _metadata(reader: _Reader, count: int) -> tuple[dict[str, Any], dict[str, int]]:
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    strings_left = _MAX_STRINGS
    kept_left = _MAX_KEPT_BYTES
    for _ in range(count):
        start = reader.offset
        key = reader.name_of(_MAX_KEY_BYTES, "a key")
        what = f"'{key}'"
        if key in values or key in lengths:
            raise reader.fail(f"the key {what} is there twice (again at offset {start:,})")
        kind = reader.u32(what)
        if kind == _STRING:
            length = reader.u64(what)
            if length <= min(_MAX_KEPT_STRING, kept_left):
                values[key] = reader.raw(length, what).decode("utf-8", "replace")
                kept_left -= length
            else:
                reader.skip(length, what)
                lengths[key] = length
        elif kind == _ARRAY:
            item = reader.u32(what)
            items = reader.u64(what)
            if item == _STRING:
                if items > min(strings_left, (reader.size - reader.offset) // 8):
                    raise reader.fail(
                        f"the header is cut or wrong: {what} at offset {start:,} claims {items:,} strings"
                    )
                strings_left -= items
                reader.skip_strings(items, what)
                lengths[key] = items
            elif code := _SCALARS.get(item):
                size = items * struct.calcsize(code)
                if items <= _MAX_KEPT_ARRAY and size <= kept_left:
                    values[key] = struct.unpack(f"<{items}{code}", reader.raw(size, what))
                    kept_left -= size
                else:
                    reader.skip(size, what)
                lengths[key] = items
            else:
                raise reader.fail(f"{what} at offset {start:,} is an array of the unknown value type {item}")
        elif code := _SCALARS.get(kind):
            values[key] = struct.unpack(f"<{code}", reader.raw(struct.calcsize(code), what))[0]
        else:
            raise reader.fail(f"{what} at offset {start:,} has the unknown value type {kind}")
    return values, lengths


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise reader.fail(f"'general.alignment' is {alignment!r}, expected a power of two")
    if alignment > _MAX_ALIGNMENT:
        raise reader.fail(f"'general.alignment' is {alignment:,}, expected at most {_MAX_ALIGNMENT:,}")
    return alignment


def _tensors(reader: _Reader, count: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    tensors: list[Tensor] = []
    offsets: list[int] = []
    seen: set[str] = set()
    for index in range(count):
        start = reader.offset
        name = reader.name_of(MAX_NAME_BYTES, f"the name of tensor {index}")
        if name in seen:
            raise reader.fail(f"the tensor '{name}' is there twice (again at offset {start:,})")
        seen.add(name)
        what = f"tensor '{name}'"
        dims = reader.u32(what)
        if dims > MAX_DIMS:
            raise reader.fail(
                f"{what} at offset {start:,} has {dims:,} dimensions, expected at most {MAX_DIMS}"
            )
        tail = _TAILS[dims]
        reader.need(tail.size, what)
        *shape, type_id, offset = tail.unpack_from(reader.data, reader.pos)
        reader.pos += tail.size
        kind = of_id(type_id)
        if kind is None:
            raise _unknown_type(reader, what, start, type_id)
        tensor = Tensor(name, kind, tuple(shape) or (1,))
        elements = tensor.elements
        if not 0 < elements < 1 << 63 or kind.nbytes(elements) > _MAX_TENSOR_BYTES:
            raise reader.fail(f"{what} at offset {start:,} has the impossible shape {tensor.shape}")
        if tensor.shape[0] % kind.block_elements:
            raise reader.fail(
                f"{what} at offset {start:,} has rows of {tensor.shape[0]:,} elements, "
                f"expected a multiple of {kind.block_elements} for {kind.name}"
            )
        tensors.append(tensor)
        offsets.append(offset)
    return tuple(tensors), tuple(offsets)


def _unknown_type(reader: _Reader, what: str, start: int, type_id: int) -> ModelError:
    if old := REMOVED.get(type_id):
        return ModelError(
            f"{reader.name}: {what} at offset {start:,} has the type {old}, which llama.cpp has removed",
            hint="get a newer file of this model",
        )
    return ModelError(
        f"{reader.name}: {what} at offset {start:,} has the unknown type {type_id}, expected one of "
        f"llama.cpp's (up to {max(BY_ID)}) or ik_llama.cpp's",
        hint="a file made for another engine, or a newer one, needs that engine",
    )


def _check_offsets(
    reader: _Reader, tensors: tuple[Tensor, ...], offsets: tuple[int, ...], alignment: int
) -> int:
    """Where the last tensor ends. Each must lie right behind the one before, as the engine demands."""
    expected = end = 0
    for tensor, offset in zip(tensors, offsets, strict=True):
        if offset != expected:
            raise reader.fail(
                f"tensor '{tensor.name}' has its data at offset {offset:,}, expected {expected:,} "
                f"(behind the one before, aligned to {alignment})"
            )
        end = offset + tensor.nbytes
        expected = -(-end // alignment) * alignment
    return end
