"""Mutated headers end in a ModelError or in a header, never in anything else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.errors import ModelError
from plan_llama.models.gguf import RawHeader, read_header
from tests import gguf_builder as build

SEED = build.header()[0]


def read_or_refuse(raw: bytes) -> RawHeader | None:
    try:
        return read_header(lambda offset, size: raw[offset : offset + size], len(raw), "fuzz.gguf")
    except ModelError as error:
        refusal = error.line()
    assert refusal.isprintable()
    return None


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(SEED)
    for place, value in changes:
        raw[place] = value
    header = read_or_refuse(bytes(raw))
    if header:
        assert not header.tensors or header.data_offset % header.alignment == 0
        assert all(tensor.elements > 0 for tensor in header.tensors)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SEED)), st.binary(max_size=40), st.integers(0, 40))
def test_inserted_and_removed_bytes(place: int, added: bytes, removed: int) -> None:
    read_or_refuse(SEED[:place] + added + SEED[place + removed :])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic(rest: bytes) -> None:
    read_or_refuse(b"GGUF\x03\0\0\0" + rest)
