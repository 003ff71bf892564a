"""The bytes of a checkpoint that one rank holds: what is sliced, what every rank repeats, and what quantisation adds.

Source: vllm/model_executor/layers/linear.py, vocab_parallel_embedding.py, fused_moe/ and the model classes of vLLM
0.33.0. The classes of tensors are those of llama.cpp's names.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from plan_llama.memory.vllm.kv import stage_bounds
from plan_llama.models.checkpoints import Checkpoint, Quantisation
from plan_llama.models.types import Tensor

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)$")
_COLUMNS = re.compile(
    r"^(attn_q|attn_q_b|attn_k_b|attn_v_b|attn_kv_b|ffn_gate|ffn_up|ffn_gate_shexp|ffn_up_shexp)\.(weight|bias)$"
)
_ROWS = re.compile(r"^(attn_output|ffn_down|ffn_down_shexp)\.weight$")
_HEADS_KV = re.compile(r"^attn_[kv]\.(weight|bias)$")
_EXPERTS = re.compile(r"^ffn_(gate|up|down|gate_up)_exps\.(weight|bias)$")
# With experts placed whole under both TP and DP, the tokens of a layer are shared out (use_sequence_parallel_moe).
_BESIDE_EXPERTS = re.compile(r"^ffn_(gate|up|down)(_shexp)?\.(weight|bias)$")
_HEAD_ROWS = re.compile(r"attn_sinks\.weight$")
_FLOAT32 = re.compile(r"exp_probs_b\.bias$|^indexer\.k_norm\.")
# Tables that the converter adds, and inputs that it computes.
_NOT_LOADED = re.compile(r"^rope_freqs\.|rope_factors_")
_VOCABULARY_STEP = 64  # DEFAULT_VOCAB_PADDING_SIZE
_FP8_BLOCK = 128
_SMALL = 16  # scales of a whole matrix and of its inputs, shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """How the work is cut: TP slices matrices, PP layers, DP repeats all but experts, EP places experts whole."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    context: int = 1  # --decode-context-parallel-size: inside TP, no ranks of its own

    @property
    def world(self) -> int:
        """All ranks: one GPU each."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True)
class Padding:
    """What MXFP4 experts are rounded up to: multiples of the inner and of the hidden size
    (mxfp4_round_up_hidden_size_and_intermediate_size in vllm/model_executor/layers/fused_moe/oracle/mxfp4.py)."""

    inner: int
    hidden: int


HOPPER = Padding(64, 1)
MARLIN = Padding(128, 256)  # and TensorRT-LLM's kernels on Blackwell
ROCM = Padding(256, 256)


@dataclass(frozen=True, slots=True)
class _Class:
    """Tensors of one name and shape: which layers have them (sorted), and one of them."""

    name: str
    tensor: Tensor
    layers: tuple[int, ...]


@lru_cache(maxsize=8)
def _classes(checkpoint: Checkpoint) -> tuple[tuple[_Class, ...], tuple[Tensor, ...]]:
    """The tensors of layers by class, and those outside of layers."""
    found: dict[tuple[str, tuple[int, ...], bool], list[int]] = {}
    first: dict[tuple[str, tuple[int, ...], bool], Tensor] = {}
    loose = []
    for tensor in checkpoint.spec.tensors:
        match = _BLOCK.match(tensor.name)
        if match is None:
            loose.append(tensor)
            continue
        key = match[2], tensor.shape, checkpoint.quantisation.applies_to(tensor.name)
        found.setdefault(key, []).append(int(match[1]))
        first.setdefault(key, tensor)
    classes = tuple(_Class(key[0], first[key], tuple(sorted(layers))) for key, layers in found.items())
    return classes, tuple(loose)


def weights_bytes(
    checkpoint: Checkpoint,
    ranks: Ranks,
    *,
    stage: int = 0,
    wide_router: bool = False,
    padding: Padding | None = None,
    drafts: bool = False,
) -> int:
    """What the first rank of a pipeline stage holds after loading. `wide_router`: the router is kept in 32 bits.

    `padding` is that of the card's MXFP4 kernel; left out, the largest. `drafts`: the last stage holds the model's own
    blocks for next-token prediction as well.
    """
    padding = padding or MARLIN
    low, high = stage_bounds(checkpoint.spec.layers, ranks.pipeline)[stage]
    first, last = stage == 0, stage == ranks.pipeline - 1
    if drafts and last:
        high = checkpoint.spec.int_param("block_count")
    classes, loose = _classes(checkpoint)
    total = 0
    for item in classes:
        count = bisect_left(item.layers, high) - bisect_left(item.layers, low)
        if not count:
            continue
        total += count * _layer_bytes(checkpoint, item.tensor, item.name, ranks, padding)
        if wide_router and item.name == "ffn_gate_inp.weight":
            total += count * 2 * item.tensor.elements
    tied = all(tensor.name != "output.weight" for tensor in loose)
    for tensor in loose:
        if tensor.name == "token_embd.weight":
            if first or (tied and last):
                total += _vocabulary_bytes(tensor, ranks)
        elif tensor.name.startswith("output."):
            if last:
                total += _vocabulary_bytes(tensor, ranks)
        elif not _NOT_LOADED.search(tensor.name) and last:
            total += 2 * tensor.elements
    return total


def _vocabulary_bytes(tensor: Tensor, ranks: Ranks) -> int:
    """Embedding and head are cut by words, padded to a multiple of 64 over all."""
    width, words = (tensor.shape[0], tensor.shape[1]) if len(tensor.shape) > 1 else (1, tensor.shape[0])
    padded = _ceil(words, _VOCABULARY_STEP) * _VOCABULARY_STEP
    return 2 * width * _ceil(padded, ranks.tensor)


def _layer_bytes(checkpoint: Checkpoint, tensor: Tensor, name: str, ranks: Ranks, padding: Padding) -> int:
    if _NOT_LOADED.search(name):
        return 0
    if _FLOAT32.search(name):
        return 4 * tensor.elements
    shape = list(tensor.shape) if len(tensor.shape) > 1 else [1, *tensor.shape]
    spec = checkpoint.spec
    if _EXPERTS.search(name):
        return _expert_bytes(checkpoint, tensor, name, shape, ranks, padding)
    if len(shape) > 2:  # heads of a latent attention, one matrix each: (rows, columns, heads)
        flat = [shape[0], shape[1] * shape[2]]
        if name.startswith("attn_k_b"):
            flat = [shape[1], shape[0] * shape[2]]
        shape = flat
    columns, rows = shape
    if _HEADS_KV.search(name) and spec.int_param("attention.head_count_kv", 1) >= 1:
        heads = spec.int_param("attention.head_count_kv", layer=int(tensor.name.split(".")[1]))
        rows = rows // heads * max(1, heads // ranks.tensor)
    elif name.startswith("attn_qkv."):
        rows = _fused_rows(checkpoint, rows, ranks)
    elif ranks.expert and ranks.tensor > 1 and ranks.data > 1 and _BESIDE_EXPERTS.search(name):
        pass  # every rank has all of it
    elif _COLUMNS.search(name) or _HEAD_ROWS.search(name):
        rows = _ceil(rows, ranks.tensor)
    elif _ROWS.search(name):
        columns = _ceil(columns, ranks.tensor)
    if name.endswith(".weight") and len(tensor.shape) > 1 and checkpoint.quantisation.applies_to(tensor.name):
        return matrix_bytes(checkpoint.quantisation, columns, rows)
    return 2 * columns * rows


def _fused_rows(checkpoint: Checkpoint, rows: int, ranks: Ranks) -> int:
    """Rows of Q, K and V in one matrix: K and V are repeated where there are fewer heads than ranks."""
    heads = checkpoint.spec.int_param("attention.head_count")
    heads_kv = checkpoint.spec.int_param("attention.head_count_kv", heads)
    return rows // (heads + 2 * heads_kv) * (heads // ranks.tensor + 2 * max(1, heads_kv // ranks.tensor))


def _expert_bytes(
    checkpoint: Checkpoint, tensor: Tensor, name: str, shape: list[int], ranks: Ranks, padding: Padding
) -> int:
    """Routed experts: sliced over TP x DP, or with EP whole ones on each rank of TP x DP."""
    over = ranks.tensor * ranks.data
    bias = name.endswith(".bias")
    columns, rows, experts = (1, shape[0], shape[1]) if bias else (shape[0], shape[1], shape[2])
    if ranks.expert:
        experts = _ceil(experts, over)
    elif not name.startswith("ffn_down"):
        rows = _ceil(rows, over)
    elif not bias:
        columns = _ceil(columns, over)
    if checkpoint.quantisation.scheme == "mxfp4" and checkpoint.quantisation.method == "gpt_oss_mxfp4":
        columns, rows = _padded(name, columns, rows, padding)
    if not bias and checkpoint.quantisation.applies_to(tensor.name):
        size = experts * _packed_bytes(checkpoint.quantisation, columns, rows) + _SMALL
        if checkpoint.quantisation.scheme == "gptq" and not name.startswith("ffn_up"):
            size += 4 * experts * columns  # g_idx is loaded of experts in any case
        return size
    return 2 * experts * columns * rows


def _padded(name: str, columns: int, rows: int, padding: Padding) -> tuple[int, int]:
    """Inputs and outputs of an expert's matrix, or the outputs of a bias, as the kernel wants them."""
    inner, hidden = padding.inner, padding.hidden
    if name.startswith("ffn_down"):
        inside, outside = _ceil(columns, inner) * inner, _ceil(rows, hidden) * hidden
        return (1 if columns == 1 else inside), outside
    outside = _ceil(columns, hidden) * hidden
    return (1 if columns == 1 else outside), _ceil(rows, inner) * inner


def matrix_bytes(quantisation: Quantisation, columns: int, rows: int) -> int:
    """A quantised matrix of `rows` outputs from `columns` inputs, with its scales."""
    return _packed_bytes(quantisation, columns, rows) + _SMALL


def _packed_bytes(quantisation: Quantisation, columns: int, rows: int) -> int:
    count = columns * rows
    groups = _ceil(columns, quantisation.group) if quantisation.group else 1
    scheme = quantisation.scheme
    if scheme == "fp8-block":
        return count + 4 * _ceil(columns, _FP8_BLOCK) * _ceil(rows, _FP8_BLOCK)
    if scheme in ("fp8-channel", "int8"):
        return count + 4 * rows
    if scheme == "fp8-tensor":
        return count + 4
    if scheme == "nvfp4":
        return count // 2 + count // 16
    if scheme == "mxfp4":
        return count // 2 + count // 32
    packed = count // 2 + 2 * groups * rows
    if scheme in ("awq", "gptq"):
        packed += groups * rows // 2  # zero points
    if scheme == "gptq" and not quantisation.ordered:
        packed += 4 * columns  # g_idx
    return packed


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
