"""Which weights in system memory llama.cpp keeps in a format of the CPU, and what they take there.

Source: make_cpu_buft_list (src/llama-model.cpp), ggml_repack_get_optimal_repack_type (ggml/src/ggml-cpu/repack.cpp),
supports_op and ggml_backend_amx_get_alloc_size (ggml/src/ggml-cpu/amx), b11434. Only weights that are multiplied with
are repacked, and none where a device has a pinned host buffer: that comes first in the engine's list.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from plan_llama.memory.scheduler import CPU_KIND, padded_bytes
from plan_llama.models.spec import is_expert
from plan_llama.models.types import Tensor

_AMX_ROWS = 32  # a product has a multiple of so many rows (TILE_N * 2)
# Elements of a block, and bytes that the AMX format adds to each: sums for the compensation, unpacked scales.
_AMX_BLOCKS = {
    "q4_0": (32, 0),
    "q4_1": (32, 0),
    "q8_0": (32, 4),
    "q4_K": (256, 4),
    "q5_K": (256, 4),
    "q6_K": (256, 0),
    "iq4_xs": (256, 2),
}
_AMX_PLAIN = {"f16": 16}  # kept there as they are
# Rows that are interleaved, by type and instruction set; the first set that the CPU has counts.
_INTERLEAVED: dict[str, tuple[tuple[str, int], ...]] = {
    "q4_0": (("avx2", 8), ("i8mm", 4), ("dotprod", 4)),
    "q4_K": (("avx2", 8), ("i8mm", 8), ("dotprod", 8)),
    "q2_K": (("avx512", 8),),
    "q5_K": (("i8mm", 8), ("dotprod", 8)),
    "q6_K": (("i8mm", 8), ("dotprod", 8)),
    "iq4_nl": (("avx2", 8), ("dotprod", 4)),
    "mxfp4": (("avx2", 8), ("dotprod", 4)),
    "q8_0": (("i8mm", 4), ("dotprod", 4)),
    "q1_0": (("i8mm", 4), ("dotprod", 4)),
}


def interleaved_types(isa: Collection[str]) -> frozenset[str]:
    """The types whose rows are interleaved on a CPU with these instruction sets, where a matrix has enough of them."""
    return frozenset(kind for kind, steps in _INTERLEAVED.items() if any(name in isa for name, _ in steps))


def repacked_bytes(tensors: Sequence[Tensor], isa: Collection[str]) -> tuple[int | None, ...]:
    """What each tensor takes in the CPU's own format; None for one that stays as it is in the file."""
    return tuple(_bytes(tensor, isa) for tensor in tensors)


def _bytes(tensor: Tensor, isa: Collection[str]) -> int | None:
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return None
    kind, row, rows = tensor.type.name, tensor.shape[0], tensor.shape[1]
    expert = is_expert(tensor)
    if "amx" in isa and not expert and rows % _AMX_ROWS == 0:
        if kind in _AMX_BLOCKS:
            block, added = _AMX_BLOCKS[kind]
            if row % block == 0:  # of a stack of matrices only one is counted, as the engine does
                return padded_bytes(
                    rows * (tensor.type.nbytes(row) + row // block * added), tensor.type, row, CPU_KIND
                )
        elif row % _AMX_PLAIN.get(kind, row + 1) == 0:
            return padded_bytes(tensor.nbytes, tensor.type, row, CPU_KIND)
    if len(tensor.shape) == (3 if expert else 2):
        fitting = (rows % step == 0 for name, step in _INTERLEAVED.get(kind, ()) if name in isa)
        if any(fitting):
            return padded_bytes(tensor.nbytes, tensor.type, row, CPU_KIND)
    return None
