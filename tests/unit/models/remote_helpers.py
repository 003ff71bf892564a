"""What the tests of models on a server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.errors import PlanLlamaError
from plan_llama.models.gguf import read_header
from plan_llama.models.resolve import resolve_model
from plan_llama.models.types import ModelSpec
from tests import gguf_builder as build

REPO = "someone/Tiny-GGUF"


TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123456789"  # of the form that the hub gives out; nobody's


KEPT = "/someone/Tiny-GGUF/resolve/main/Tiny-Q8_0.gguf"


def gguf(filler: int = 0, **keys: object) -> bytes:
    """A whole file; `filler` tokens make its header large."""
    more = {"tokenizer.ggml.tokens": [f"token {n}" for n in range(filler)]} if filler else {}
    raw, size = build.header({**build.TINY_KEYS, **more, **keys})
    return raw + b"\0" * size


def refusal(text: str, quant: str | None = None) -> str:
    with pytest.raises(PlanLlamaError) as caught:
        resolve_model(text, quant)
    line = caught.value.line()
    assert "\n" not in line
    assert TOKEN not in line
    return line


def same(spec: ModelSpec, data: bytes) -> bool:
    """Whether a spec says what the reader of files says of these bytes."""
    header = read_header(lambda offset, size: data[offset : offset + size], len(data), "x")
    return spec.tensors == header.tensors and spec.file_bytes == len(data) and not spec.present


def split_model(tmp_path: Path) -> dict[str, bytes]:
    parts: list[list[build.TensorRow]] = [
        [("token_embd.weight", (64, 4), build.F16_TYPE)],
        [("output_norm.weight", (64,), build.F32_TYPE)],
        [("blk.0.attn_q.weight", (64, 64), build.Q8_0_TYPE)],
    ]
    paths = build.write_split(tmp_path, "Tiny-Q8_0", parts)
    return {path.name: path.read_bytes() for path in paths}
