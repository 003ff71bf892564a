"""The header reader: right on good files, one line on bad ones, small and fast on all."""

from __future__ import annotations

import gzip
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from plan_llama.errors import ModelError
from plan_llama.models.ggml_types import BY_ID, BY_NAME, FILE_TYPES
from plan_llama.models.gguf import read_file, read_header
from tests import gguf_builder as build


def read_bytes(raw: bytes) -> Any:
    return read_header(lambda offset, size: raw[offset : offset + size], len(raw), "x.gguf")


def test_types_agree_with_the_gguf_package() -> None:
    # Its q8_1 has two f32 scales where ggml has two f16 (an intermediate type, never in a file).
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    ours = {kind.id: (kind.block_elements, kind.block_bytes) for kind in BY_ID.values()}
    assert {number: ours[number] for number in theirs} == theirs
    assert {kind.name.lower() for kind in gguf.GGMLQuantizationType} <= set(BY_NAME)


def test_file_types_agree_with_the_gguf_package() -> None:
    for kind in gguf.LlamaFileType:
        if kind.name != "GUESSED":
            assert FILE_TYPES[int(kind)] == kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_array("llama.attention.head_count_kv", [8, 4])
    writer.add_bool("llama.expert_weights_norm", True)
    writer.add_token_list(["a", "bb", "", "\u00e9\u4e2d"])
    writer.add_int8("x.i8", -3)
    writer.add_uint64("x.u64", 1 << 40)
    writer.add_float64("x.f64", 0.1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), dtype=np.float16))
    quantised = gguf.quants.quantize(np.ones((8, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("odd.bias", np.zeros(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_file(path)
    theirs = gguf.GGUFReader(path)
    assert [(t.name, t.shape, t.type.id, t.nbytes) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), int(t.n_bytes)) for t in theirs.tensors
    ]
    assert header.data_offset == theirs.data_offset
    assert [header.data_offset + place for place in header.offsets] == [t.data_offset for t in theirs.tensors]
    assert header.metadata["llama.attention.head_count_kv"] == (8, 4)
    assert header.metadata["llama.rope.freq_base"] == 500000.0
    assert header.metadata["llama.expert_weights_norm"] is True
    assert (header.metadata["x.i8"], header.metadata["x.u64"], header.metadata["x.f64"]) == (-3, 1 << 40, 0.1)
    assert header.array_lengths["tokenizer.ggml.tokens"] == 4
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert header.data_there == header.data_end <= path.stat().st_size


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_and_another_alignment(tmp_path: Path, version: int) -> None:
    keys = {**build.TINY_KEYS, "general.alignment": 256}
    header = read_file(build.write(tmp_path / "m.gguf", keys, version=version, alignment=256))
    assert (header.version, header.alignment) == (version, 256)
    assert header.data_offset % 256 == 0
    assert header.offsets == (0, 512, 768)


def test_long_arrays_are_counted_and_short_ones_kept() -> None:
    keys = {**build.TINY_KEYS, "llama.per_layer": [1, 2, 3], "tokenizer.ggml.token_type": [1] * 5000}
    header = read_bytes(build.header(keys)[0])
    assert header.metadata["llama.per_layer"] == (1, 2, 3)
    assert header.array_lengths["tokenizer.ggml.token_type"] == 5000
    assert "tokenizer.ggml.token_type" not in header.metadata


def test_strings_across_windows() -> None:
    """Strings longer than the read window, and lengths that straddle two windows."""
    strings = ["x" * 700_003, "", "y" * 1_500_001, "z", "w" * 1_048_571, "\u00e9" * 9]
    raw = build.header({"long": build.array(build.STRING, strings), **build.TINY_KEYS})[0]
    header = read_bytes(raw)
    assert header.array_lengths["long"] == 6
    assert header.metadata["general.name"] == "Tiny Llama"
    assert len(header.tensors) == 3


def test_a_tensor_without_dimensions_is_one_element() -> None:
    header = read_bytes(build.header(build.TINY_KEYS, [("scale", (), build.F32_TYPE)])[0])
    assert (header.tensors[0].shape, header.tensors[0].nbytes) == ((1,), 4)


BIG = 1 << 60
KEYS, TENSORS = build.TINY_KEYS, build.TINY_TENSORS
EMBD = TENSORS[0]

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the header is cut: the magic 'GGUF' needs 4 bytes at offset 0"),
    "three bytes": (b"GGU", "the header is cut"),
    "not gguf": (b"PK\x03\x04" + b"\0" * 100, "not a GGUF file"),
    "html": (b"<!DOCTYPE html><html>", "not a GGUF file"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not a GGUF file"),
    "version 0": (build.header(version=0)[0], "GGUF version 0, expected 2 or 3"),
    "version 1": (build.header(version=1)[0], "GGUF version 1"),
    "version 4": (build.header(version=4)[0], "GGUF version 4, expected 2 or 3"),
    "big-endian": (build.header(version=3 << 24)[0], "big-endian"),
    "tensor count": (build.header(tensor_count=BIG)[0], "number of tensors at offset 8"),
    "key count": (build.header(key_count=BIG)[0], "number of keys at offset 16"),
    "one key too many": (build.header(key_count=len(KEYS) + 1)[0], "the name of tensor 0"),
    "one tensor too many": (build.header(tensor_count=4)[0], "tensor 3"),
    "key length": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, BIG), "a key at offset 24 has"),
    "empty key": (build.header([("", 1)])[0], "a key at offset 24 has 0 bytes"),
    "control character in a key": (build.header([("a\nb", 1)])[0], "not printable"),
    "bytes that are no text": (build.header([(b"\xff\xfe", 1)])[0], "not printable"),
    "same key twice": (
        build.header([*KEYS.items(), ("general.name", "x")])[0],
        "'general.name' is there twice",
    ),
    "value type": (build.header([("k", struct.pack("<I", 99))])[0], "unknown value type 99"),
    "array type": (
        build.header([("k", struct.pack("<IIQ", 9, 99, 1))])[0],
        "array of the unknown value type",
    ),
    "array of arrays": (build.header([("k", struct.pack("<IIQ", 9, 9, 1))])[0], "array of the unknown value"),
    "string length": (build.header([("k", struct.pack("<IQ", 8, BIG))])[0], "the header is cut: 'k'"),
    "array count": (build.header([("k", build.array(build.I32, [1], BIG))])[0], "the header is cut: 'k'"),
    "string count": (build.header([("k", build.array(build.STRING, ["a"], BIG))])[0], "claims 1,152,921"),
    "string past the end": (
        build.header([("k", struct.pack("<IIQQQ", 9, 8, 2, 1 << 40, 0) + b"\0" * 64)])[0],
        "ends at offset",
    ),
    "string length overflows": (
        build.header([("k", struct.pack("<IIQQQ", 9, 8, 2, (1 << 64) - 1, 0) + b"\0" * 64)])[0],
        "ends at offset",
    ),
    "alignment 0": (build.header({**KEYS, "general.alignment": 0})[0], "'general.alignment' is 0"),
    "alignment 24": (build.header({**KEYS, "general.alignment": 24})[0], "power of two"),
    "alignment 2**31": (build.header({**KEYS, "general.alignment": 1 << 31})[0], "at most"),
    "alignment text": (build.header({**KEYS, "general.alignment": "32"})[0], "'general.alignment' is '32'"),
    "same tensor twice": (build.header(KEYS, [*TENSORS, EMBD])[0], "'token_embd.weight' is there twice"),
    "control character in a tensor": (build.header(KEYS, [("a\x1b[2J", (4,), 0)])[0], "not printable"),
    "long tensor name": (build.header(KEYS, [("n" * 64, (4,), 0)])[0], "has 64 bytes, expected 1 to 63"),
    "five dimensions": (build.header(KEYS, [("t", (1, 1, 1, 1, 1), 0)])[0], "has 5 dimensions"),
    "dimension 0": (build.header(KEYS, [("t", (4, 0), 0)])[0], "impossible shape (4, 0)"),
    "dimensions overflow": (build.header(KEYS, [("t", (1 << 40, 1 << 40), 0)])[0], "impossible shape"),
    "dimension 2**63": (build.header(KEYS, [("t", (1 << 63,), 0)])[0], "impossible shape"),
    "unknown type": (build.header(KEYS, [("t", (32,), 9139)])[0], "unknown type 9139"),
    "removed type": (build.header(KEYS, [("t", (32,), 31)])[0], "type q4_0_4_4, which llama.cpp has removed"),
    "type without a name": (build.header(KEYS, [("t", (32,), (1 << 32) - 1)])[0], "unknown type"),
    "row no multiple": (build.header(KEYS, [("t", (48,), 8)])[0], "rows of 48 elements, expected a multiple"),
    "offset unaligned": (build.header(offsets=(0, 520, 768))[0], "at offset 520, expected 512"),
    "offset overlaps": (build.header(offsets=(0, 0, 768))[0], "at offset 0, expected 512"),
    "offset far": (build.header(offsets=(0, 512, BIG))[0], "expected 768"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_one_line(case: str, tmp_path: Path) -> None:
    raw, expected = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError) as caught:
        read_file(path)
    assert expected in caught.value.line()
    assert caught.value.line().startswith(str(path))
    assert caught.value.line().isprintable()
    assert len(caught.value.line()) < 400


def test_cut_anywhere_inside_the_header(tmp_path: Path) -> None:
    raw, _ = build.header()
    end = read_bytes(raw).header_bytes
    for length in range(end):
        with pytest.raises(ModelError, match=r"cut|not a GGUF"):
            read_bytes(raw[:length])
    whole = read_bytes(raw[:end])  # a complete header is enough
    assert whole.data_there == end < whole.data_end


HUGE_LIES = {
    "keys": build.header(key_count=16_000, keys=[])[0][:24],
    "strings beyond the file": build.header([("k", struct.pack("<IIQ", 9, 8, 1 << 39))])[0],
    "empty strings": build.header([("k", struct.pack("<IIQ", 9, 8, 3_999_999))], [], tensor_count=1)[0],
    "numbers": build.header([("k", struct.pack("<IIQ", 9, 4, 1 << 37))])[0],
    "one string": build.header([("k", struct.pack("<IQ", 8, 1 << 39))])[0],
    "tensors": build.header(keys=[], tensor_count=65_000, tensors=[])[0][:24],
}


@pytest.mark.parametrize("raw", HUGE_LIES.values(), ids=HUGE_LIES.keys())
def test_lies_in_a_huge_sparse_file_cost_little(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(1 << 40)
    started = time.process_time()  # what others do on the machine does not count
    with pytest.raises(ModelError):
        read_file(path)
    assert time.process_time() - started < 1.0
    tracemalloc.start()
    with pytest.raises(ModelError):
        read_header(lambda offset, size: raw[offset : offset + size].ljust(size, b"\0"), 1 << 24, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


def with_merges(raw: bytes, count: int) -> bytes:
    """A captured header whose one merge becomes many, of a usual length."""
    at = raw.index(b"tokenizer.ggml.merges") + len(b"tokenizer.ggml.merges")
    old = build.array(build.STRING, ["a b"])
    assert raw[at : at + len(old)] == old
    merge = build.text("\u0120abcd efgh")
    return raw[:at] + struct.pack("<IIQ", 9, 8, count) + merge * count + raw[at + len(old) :]


@pytest.mark.parametrize(
    ("merges", "limit_s"), [(1, 0.12), pytest.param(320_000, 0.3, marks=pytest.mark.slow)]
)
def test_a_big_header_is_fast_and_small(merges: int, limit_s: float, tmp_path: Path) -> None:
    """Bounds are several times what an idle machine of 2024 takes (15 and 40 ms)."""
    path = build.oracle_file("glm-5.1-ud-iq2", tmp_path)
    if merges > 1:
        captured = gzip.decompress((build.ORACLE / "models" / "glm-5.1-ud-iq2.hdr.gz").read_bytes())
        path.write_bytes(with_merges(captured, merges))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        header = read_file(path)
        times.append(time.perf_counter() - started)
    assert len(header.tensors) == 1809
    assert header.array_lengths["tokenizer.ggml.tokens"] == 154_880
    assert header.array_lengths["tokenizer.ggml.merges"] == merges
    assert min(times) < limit_s
    tracemalloc.start()
    read_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a file"):
        read_file(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_file(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="not a file"):
        read_file(Path("/dev/null"))
    with pytest.raises(ModelError, match="not a usable path"):
        read_file(Path("a\0b.gguf"))
