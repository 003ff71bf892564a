"""Random but valid weights behind a header: as fast or slow as a published file, at no download.

A block's bits are random, its scales are set so that weights have the spread of trained ones and lie around zero:
nothing overflows. A router's scores have a spread of about 1: tokens go to different experts, and no score is so large
that its sigmoid is exactly one (of equal scores llama.cpp takes the same experts for every token). Kernels take the
same time for any bits. With `alone` what a block adds to its input is zero: each token keeps its own embedding through
all layers, where else the layers of a deep model make all tokens choose alike. Needs numpy.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from plan_llama.models.ggml_types import BY_NAME
from plan_llama.models.gguf import read_file
from plan_llama.models.types import Tensor

_TILE_BYTES = 24 << 20
_SPREAD = 0.02  # standard deviation of a weight
_MXFP4_EXPONENT = 119
_MXFP4_NOTHING = 40  # 2**-87: adds nothing, and is no number that slows a CPU down
_ADDS = re.compile(r"\.(attn_output|ssm_out|ffn_down|ffn_down_exps|ffn_down_shexp)\.weight$")

# Where a block keeps its scales (half precision), and by what of the wanted spread each is multiplied: one over the
# root mean square of the random rest, and for an offset that times the mean. block_* of ggml/src/ggml-common.h, b11434.
_SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "q4_0": ((0, 1 / 4.6),),
    "q4_1": ((0, 1 / 4.6), (2, -7.5 / 4.6)),
    "q5_0": ((0, 1 / 9.2),),
    "q5_1": ((0, 1 / 9.2), (2, -15.5 / 9.2)),
    "q8_0": ((0, 1 / 74),),
    "q2_K": ((80, 1 / 13), (82, 1.5 / 13)),
    "q3_K": ((108, 1 / 42),),
    "q4_K": ((0, 1 / 220), (2, 7.5 / 220)),
    "q5_K": ((0, 1 / 450), (2, 15.5 / 450)),
    "q6_K": ((208, 1 / 1370),),
    "iq4_nl": ((0, 1 / 72),),
    "iq4_xs": ((0, 1 / 1330),),
    "iq3_xxs": ((0, 1 / 130),),
    "iq3_s": ((0, 1 / 150),),
    "iq2_xxs": ((0, 1 / 110),),
    "iq2_xs": ((0, 1 / 110),),
    "iq2_s": ((0, 1 / 110),),
    "iq1_s": ((0, 1 / 7),),
}


def fill(path: Path, *, alone: bool = False) -> None:
    """Writes the data of every tensor of a file that has only its header, the same at every time."""
    found = read_file(path)
    with path.open("r+b") as file:
        for tensor, offset in zip(found.tensors, found.offsets, strict=True):
            file.seek(found.data_offset + offset)
            for part in _data(tensor, alone):
                file.write(part)


def _data(tensor: Tensor, alone: bool) -> Iterator[bytes]:
    kind = tensor.type.name
    if kind == "f32" and re.search("norm|rope_f", tensor.name):
        yield np.ones(tensor.elements, np.float32).tobytes()
        return
    if kind == "f32" and re.search("bias|sinks|exp_probs", tensor.name):
        yield bytes(tensor.nbytes)
        return
    block = tensor.type.block_bytes
    spread = float(tensor.shape[0] ** -0.5) if "ffn_gate_inp" in tensor.name else _SPREAD
    tile = _tile(kind, 0.0 if alone and _ADDS.search(tensor.name) else spread)
    chosen, left = random.Random(tensor.name), tensor.nbytes  # noqa: S311  # to be made again
    while left:
        start = chosen.randrange(len(tile) // block // 2) * block
        part = tile[start : start + left]
        left -= len(part)
        yield part


@cache
def _tile(name: str, spread: float) -> bytes:
    """Many random blocks of a type, of which tensors are cut."""
    numbers, block = np.random.default_rng(7), BY_NAME[name.lower()].block_bytes
    if name in ("f32", "f16", "bf16"):
        values = numbers.standard_normal(_TILE_BYTES // block, np.float32) * np.float32(spread)
        if name == "bf16":
            return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        return values.astype("<f2" if name == "f16" else "<f4").tobytes()
    blocks = numbers.integers(0, 256, (_TILE_BYTES // block, block), dtype=np.uint8)
    if name == "mxfp4":
        blocks[:, 0] = _MXFP4_EXPONENT if spread else _MXFP4_NOTHING
    for place, factor in _SCALES.get(name, ()):
        blocks[:, place : place + 2] = np.frombuffer(np.float16(factor * spread).tobytes(), np.uint8)
    return blocks.tobytes()
