"""The parts of a split GGUF: found from any one of them, read, and checked to be one model.

Rules: llama_model_loader in llama.cpp b11434 (src/llama-model-loader.cpp), names as in llama_split_path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_llama.errors import ModelError
from plan_llama.models.gguf import RawHeader, read_file
from plan_llama.models.types import Tensor

_PART = re.compile(r"(?s)(?P<prefix>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_MAX_PARTS = 1_000  # a lie about the count must not make thousands of names
_MAX_NEIGHBOURS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """All parts of a model in order, `path` being the one that `-m` names."""

    path: Path
    headers: tuple[RawHeader, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors over all parts, in file order."""
        return tuple(tensor for header in self.headers for tensor in header.tensors)

    @property
    def file_bytes(self) -> int:
        """The bytes of all parts if all their data were there."""
        return sum(max(header.file_bytes, header.data_end) for header in self.headers)

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Path of every part, and its bytes when complete."""
        split = part_of(self.path)
        names = [self.path.name]
        if split and len(self.headers) > 1:
            names = [
                part_name(split[0], number, len(self.headers)) for number in range(1, len(self.headers) + 1)
            ]
        return tuple(
            (str(self.path.parent / name), max(header.file_bytes, header.data_end))
            for name, header in zip(names, self.headers, strict=True)
        )

    @property
    def missing_bytes(self) -> int:
        """Bytes of tensor data that are short or holes."""
        return sum(max(0, header.data_end - header.data_there) for header in self.headers)


def part_of(path: Path) -> tuple[str, int, int] | None:
    """(name without the part, number from 1, count) of a part's file name; None for any other name."""
    match = _PART.fullmatch(path.name)
    if not match:
        return None
    return match["prefix"], int(match["number"]), int(match["count"])


def part_name(prefix: str, number: int, count: int) -> str:
    """`NAME-00002-of-00006.gguf`."""
    return f"{prefix}-{number:05d}-of-{count:05d}.gguf"


def include_pattern(names: Sequence[str]) -> str:
    """What `hf download --include` takes for a file of a repository, or for all the parts of a split one."""
    if len(names) == 1:
        return names[0]
    return re.sub(r"-[0-9]{5}(-of-[0-9]{5}\.gguf)$", r"-*\1", names[0])


def read_all(path: Path) -> Files:
    """The headers of a GGUF and, where it is split, of all its parts, whichever part `path` is.

    Raises ModelError where a part is missing (naming all that are), belongs elsewhere, or cannot be read.
    """
    if not path.exists():
        raise _not_there(path)
    given = read_file(path)
    count = _split_int(given, "split.count", 1)
    if count <= 1:
        return Files(path=path, headers=(given,))
    named = part_of(path)
    if not named or named[2] != count:
        raise ModelError(
            f"{path}: its header says one of {count} parts, but its name lacks -0000N-of-{count:05d}.gguf",
            hint="give it back the name it was published under; llama.cpp finds the other parts by it",
        )
    if count > _MAX_PARTS:
        raise ModelError(f"{path}: the header claims {count:,} parts, expected at most {_MAX_PARTS:,}")
    parts = [path.with_name(part_name(named[0], number, count)) for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise ModelError(
            f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:6])}{more}",
            hint=f"put them beside it in {path.parent}",
        )
    headers = tuple(given if part.name == path.name else read_file(part) for part in parts)
    _check(headers, count)
    return Files(path=parts[0], headers=headers)


def from_headers(path: Path, headers: tuple[RawHeader, ...]) -> Files:
    """Parts that were read elsewhere, in order; `path` is where the first one is to be.

    Raises ModelError where they are not one whole model.
    """
    count = max(1, _split_int(headers[0], "split.count", 1))
    if count != len(headers):
        raise ModelError(
            f"{headers[0].name}: its header says one of {count} parts, its name says {len(headers)}",
            hint="a file was renamed",
        )
    if count > 1:
        _check(headers, count)
    return Files(path=path, headers=headers)


def _split_int(header: RawHeader, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(f"{header.name}: '{key}' is {value!r}, expected a number")
    return value


def _check(headers: tuple[RawHeader, ...], count: int) -> None:
    seen: set[str] = set()
    for index, header in enumerate(headers):
        number = _split_int(header, "split.no", -1) if "split.no" in header.metadata else None
        if number != index or _split_int(header, "split.count", 0) != count:
            raise ModelError(
                f"{header.name}: its header says part {'?' if number is None else number + 1} of "
                f"{header.metadata.get('split.count', '?')}, expected part {index + 1} of {count}",
                hint="the parts are not of one model, or a file was renamed",
            )
        for tensor in header.tensors:
            if tensor.name in seen:
                raise ModelError(f"{header.name}: the tensor '{tensor.name}' is in an earlier part, too")
            seen.add(tensor.name)
    total = _split_int(headers[0], "split.tensors.count", len(seen))
    if total != len(seen):
        raise ModelError(
            f"{headers[0].name}: 'split.tensors.count' is {total:,}, and the parts hold {len(seen):,}"
        )


def _not_there(path: Path) -> ModelError:
    """No such file, with the names beside it that come closest."""
    import difflib
    from itertools import islice

    near: list[str] = []
    try:
        if path.parent.is_dir():
            names = [entry.name for entry in islice(path.parent.iterdir(), _MAX_NEIGHBOURS)]
            ggufs = [name for name in names if name.lower().endswith(".gguf")]
            near = difflib.get_close_matches(path.name, ggufs, n=3, cutoff=0.7)
    except OSError:
        near = []  # a folder that cannot be listed offers no names
    hint = f"did you mean {' or '.join(near)}" if near else "check the path"
    return ModelError(f"{path}: no such file", hint=hint)
