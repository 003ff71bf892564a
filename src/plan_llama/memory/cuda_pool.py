"""What the CUDA and HIP backends take while they compute: the pool of temporary buffers beside the compute buffer.

The pool is empty when a model is loaded and grows to the largest need of a single operation, with the first long
prompt. No buffer line shows it. Which operation needs what follows ggml/src/ggml-cuda of llama.cpp b11434:
ggml_cuda_mul_mat, ggml_cuda_mul_mat_id and ggml_cuda_mul_mat_cublas (ggml-cuda.cu), ggml_cuda_should_use_mmq and
ggml_cuda_mul_mat_q (mmq.cu), top-k.cu and argsort.cu.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plan_llama.memory.ggml import Node, Shape
from plan_llama.memory.quantity import Polynomial, Quantity, evaluate, terms_of
from plan_llama.models.types import TensorType

_FEW_TOKENS = 64  # MMQ_DP4A_MAX_BATCH_SIZE
_ROW = 512  # MATRIX_ROW_PADDING: quantised activations are padded to whole ones
_Q8_1_BYTES, _Q8_1_ELEMENTS = 144, 128  # block_q8_1_mmq
_MMQ_BYTES = (
    128 * 128 * 132 * 4
) + 512 * _Q8_1_BYTES  # partial tiles of 132 multiprocessors; a tile of slack
_SORT_CHUNK_BYTES = 1 << 26  # argsort_f32_i32_cuda_cub_chunk_nrows
_SORT_COPIES = 3 + 2  # indices, keys and sorted keys; CUB's own second copy of keys and values
_BITONIC_COLUMNS = 1024  # up to here rows are sorted in shared memory
_RADIX_BINS = 256
_F32, _F16, _I32 = 4, 2, 4
# What the first product by cuBLAS takes for good, beside the pool: its handle, a workspace (32 MiB on Hopper) and its
# kernels. 90 to 97 MiB on an H200 (tests/data/cuda).
_BLAS_BYTES = 100 << 20
_LEGACY_RATIO = 1.05  # the pool without virtual memory looks ahead

# What ggml_cuda_should_use_mmq has kernels for; other types are multiplied by cuBLAS.
_MMQ_TYPES = frozenset(
    {
        *("q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K"),
        *("iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs", "iq4_nl", "mxfp4", "nvfp4"),
    }
)


class Operand(NamedTuple):
    """A tensor that an operation reads: all of it that decides what the operation holds."""

    type: TensorType
    ne: Shape


class Operation(NamedTuple):
    """One operation for one batch."""

    op: str
    precise: bool
    ne: Shape
    src: tuple[Operand, ...]


Need = tuple[int, ...]  # bytes of the temporary buffers that one operation holds at once


@dataclass(frozen=True, slots=True)
class Chip:
    """What decides an operation's kernel: a compute capability ("8.6") or a gfx target ("gfx1100").

    A card of unknown make is taken for one with integer tensor cores, as all since Turing.
    """

    name: str

    @classmethod
    def of(cls, name: str) -> Chip:
        """One for all that take the same kernels, so that a graph is gone through once for them: NVIDIA's since 8.0."""
        chip = cls(name)
        return chip if chip.amd or chip.capability < 8.0 else cls("")

    @property
    def amd(self) -> bool:
        """Whether it is a HIP device."""
        return self.name.startswith("gfx")

    @property
    def capability(self) -> float:
        """NVIDIA's compute capability as a number; 9.0 where it is not known."""
        try:
            return float(self.name)
        except ValueError:
            return 9.0

    @property
    def family(self) -> str:
        """AMD's family: CDNA3, CDNA, RDNA4, RDNA3, GCN5 or another."""
        name = self.name
        for start, family in _AMD_FAMILIES:
            if name.startswith(start):
                return family
        return "RDNA2"

    @property
    def fast_f16(self) -> bool:
        """fast_fp16_hardware_available."""
        return self.amd or (self.capability >= 6.0 and self.capability != 6.1)

    @property
    def fast_bf16(self) -> bool:
        """fast_bf16_hardware_available."""
        if self.amd:
            return self.family in ("CDNA3", "CDNA", "RDNA3", "RDNA4")
        return self.capability >= 8.0


_AMD_FAMILIES = (
    *(("gfx94", "CDNA3"), ("gfx95", "CDNA3"), ("gfx908", "CDNA"), ("gfx90a", "CDNA")),
    *(("gfx900", "GCN5"), ("gfx909", "GCN5"), ("gfx90c", "GCN5"), ("gfx11", "RDNA3"), ("gfx12", "RDNA4")),
)


_WITH_NEEDS = frozenset({"MUL_MAT", "MUL_MAT_ID", "TOP_K", "ARGSORT"})


class Operations:
    """What the operations of one GPU are decided by, for every batch: the chip is asked for with the batch, so that one
    graph answers for all chips."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        # op, precise, and type and dimensions of the result and of what is read; no nodes: those hold on to the graph
        known: dict[object, tuple[str, bool, tuple[_Tensor, ...]]] = {}
        for node in nodes:
            if node.op not in _WITH_NEEDS:
                continue
            # most layers have the same products: sizes that follow the batch are then the same objects
            same: list[object] = [node.op, node.precise]
            for tensor in (node, *node.src):
                same.append(tensor.type.id)
                for size in tensor.ne:
                    same.append(size if type(size) is int else -id(size))  # noqa: PERF401 - many short ones
            key = tuple(same)
            if key not in known:
                tensors = tuple((tensor.type, _terms(tensor.ne)) for tensor in (node, *node.src))
                known[key] = node.op, node.precise, tensors
        self._known = tuple(known.values())

    def at(self, values: Sequence[int]) -> tuple[Operation, ...]:
        """The operations for these values of the batch's variables, in the order of the graph, each once."""
        found: dict[Operation, None] = {}
        for op, precise, (own, *read) in self._known:
            sources = tuple(Operand(kind, _shape(ne, values)) for kind, ne in read)
            found[Operation(op, precise, _shape(own[1], values), sources)] = None
        return tuple(found)

    def pool_size(self, values: Sequence[int], chip: Chip | None) -> int:
        """Bytes that the card's memory grows by; none where it is neither CUDA nor HIP."""
        if chip is None:
            return 0
        operations = self.at(values)
        blas = any(one.op == "MUL_MAT" and not _as_they_are(one, chip) for one in operations)
        return pool_bytes(needs(operations, chip), chip) + (_BLAS_BYTES if blas else 0)


_Dimension = int | Polynomial
_Tensor = tuple[TensorType, tuple[_Dimension, ...]]


def _terms(ne: Shape) -> tuple[_Dimension, ...]:
    return tuple(terms_of(size) if isinstance(size, Quantity) else size for size in ne)


def _shape(ne: Sequence[_Dimension], values: Sequence[int]) -> Shape:
    a, b, c, d = (size if isinstance(size, int) else evaluate(size, values) for size in ne)
    return a, b, c, d


def operations_of(nodes: Iterable[Node], devices: int) -> tuple[Operations, ...]:
    """The operations of the first backends of a graph whose nodes know the one that runs them."""
    by_backend: list[list[Node]] = [[] for _ in range(devices)]
    for node in nodes:
        if node.op in _WITH_NEEDS and node.backend < devices:
            by_backend[node.backend].append(node)
    return tuple(map(Operations, by_backend))


def needs(operations: Iterable[Operation], chip: Chip) -> tuple[Need, ...]:
    """What each operation holds of the pool, in the order of the graph, without those that repeat: a buffer that was
    large enough once is so again."""
    found = (tuple(size for size in _need(one, chip) if size) for one in operations)
    return tuple(dict.fromkeys(filter(None, found)))


def pool_bytes(sizes: Sequence[Sequence[int]], chip: Chip) -> int:
    """What the pool grows to when operations that hold these sizes have run, in their order."""
    if not chip.amd:  # one range of virtual memory, used as a stack
        return max((sum(need) for need in sizes), default=0)
    kept: list[
        int
    ] = []  # buffers of the pool without virtual memory: reused where large enough, never given back
    for need in sizes:
        free, held = sorted(kept), []
        for size in need:
            fits = next((buffer for buffer in free if buffer >= size), None)
            if fits is None:
                held.append(int(size * _LEGACY_RATIO))
            else:
                free.remove(fits)
                held.append(fits)
        kept = [*free, *held]
    return sum(kept)


def _need(node: Operation, chip: Chip) -> Need:
    if node.op == "MUL_MAT":
        return _product(node, chip)
    if node.op == "MUL_MAT_ID":
        return _experts(node, chip)
    if node.op == "TOP_K":
        return _top_k(node.src[0], chip)
    if node.op == "ARGSORT":
        columns, rows = _table(node.src[0])
        return () if columns <= _BITONIC_COLUMNS or chip.amd else (_sorted_bytes(columns, rows),)
    return ()


def uses_mmq(kind: TensorType, chip: Chip, tokens: int, experts: int) -> bool:
    """ggml_cuda_should_use_mmq: whether quantised weights are multiplied as they are."""
    if kind.name not in _MMQ_TYPES:
        return False
    if not chip.amd:
        if chip.capability >= 7.5:
            return True
        if chip.capability < 6.1:
            return chip.capability >= 6.0 and experts > 0
        return chip.capability < 7.0 or tokens < _FEW_TOKENS
    family = chip.family
    if family == "CDNA":
        small = tokens <= 128 or (tokens <= 256 and kind.name in ("q4_K", "q5_K"))
        return experts > 64 or small or kind.name in ("q4_0", "q4_1", "q5_0", "q5_1")
    if family == "RDNA3" and experts < 64:
        most = {"q2_K": 128, "q6_K": 128 if chip.name.startswith("gfx110") else 256}
        if kind.name in ("iq2_xs", "iq2_s"):
            return chip.name.startswith("gfx115") or tokens <= 128
        return kind.name not in most or tokens <= most[kind.name]
    return experts > 0 if family == "GCN5" else True


def _product(node: Operation, chip: Chip) -> Need:
    weight, x = node.src[0], node.src[1]
    tokens = x.ne[1]
    if _as_they_are(node, chip):
        return (_quantised(x.ne[0], tokens * x.ne[2] * x.ne[3]),)
    return _blas(node, weight.ne[0] * weight.ne[1] * weight.ne[2] * weight.ne[3], chip)


def _as_they_are(node: Operation, chip: Chip) -> bool:
    """Whether a product is made of quantised weights without cuBLAS."""
    weight = node.src[0].type
    return weight.quantised and uses_mmq(weight, chip, node.src[1].ne[1], 0)


def _blas(node: Operation, weights: int, chip: Chip) -> Need:
    """ggml_cuda_mul_mat_cublas_impl: both sides in the type that is computed in, and the result in it."""
    weight, x = node.src[0], node.src[1]
    name = weight.type.name
    if weight.type.quantised:
        name = "f16" if chip.fast_f16 else "f32"
    elif (name == "f16" and not chip.fast_f16) or (name == "bf16" and not chip.fast_bf16):
        name = "f32"
    if node.precise:
        name = "f32"
    if name == "f32":
        return (weights * _F32,) if weight.type.name != "f32" else ()
    here = () if weight.type.name == name else (weights * _F16,)
    given = () if x.type.name == name else (x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3] * _F16,)
    if name == "f16":
        in_f32 = chip.family in ("RDNA4", "CDNA", "CDNA3") if chip.amd else chip.capability == 7.0
    else:
        in_f32 = not (chip.amd and chip.family in ("RDNA3", "CDNA", "CDNA3"))
    out = () if in_f32 else (node.ne[0] * node.ne[1] * node.ne[2] * node.ne[3] * _F16,)
    return (*here, *given, *out)


def _experts(node: Operation, chip: Chip) -> Need:
    weight, x, ids = node.src
    tokens, used = x.ne[2], ids.ne[0]
    if weight.type.quantised and uses_mmq(weight.type, chip, tokens, weight.ne[2]):
        return (_quantised(x.ne[0], tokens * used), 2 * tokens * used * _I32)
    plain = weight.type.quantised or (weight.type.name == "f16" and not chip.fast_f16)
    wide = _F32 if plain else weight.type.block_bytes
    given, out = tokens * used * x.ne[0] * wide, tokens * used * node.ne[0] * _F32
    # one expert at a time, in the worst case with the rows of all tokens
    one = _blas(node, weight.ne[0] * weight.ne[1], chip)
    return (2 * tokens * used * _I32, given, out, *one)


def _quantised(row: int, rows: int) -> int:
    return rows * (-(-row // _ROW) * _ROW) * _Q8_1_BYTES // _Q8_1_ELEMENTS + _MMQ_BYTES


def _table(node: Operand) -> tuple[int, int]:
    return node.ne[0], node.ne[1] * node.ne[2] * node.ne[3]


def _sorted_bytes(columns: int, rows: int) -> int:
    """argsort_f32_i32_cuda_cub, which sorts as many rows at once as make 64 MiB."""
    return min(columns * rows * _F32, _SORT_CHUNK_BYTES) * _SORT_COPIES


def _top_k(scores: Operand, chip: Chip) -> Need:
    columns, rows = _table(scores)
    if chip.amd and columns > _BITONIC_COLUMNS:
        # a histogram for each 1,024 columns, 64 at most
        return (rows * min(columns // 1024 + 1, 64) * _RADIX_BINS * _I32,)
    if chip.amd:
        return (columns * rows * _I32,)
    whole = min(columns * rows * _I32, _SORT_CHUNK_BYTES)  # the sort's result, of which k columns are kept
    return (whole,) if columns <= _BITONIC_COLUMNS else (whole, _sorted_bytes(columns, rows))
