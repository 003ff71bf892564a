"""The pool of temporary buffers: bytes worked out by hand from ggml/src/ggml-cuda of llama.cpp b11434."""

from __future__ import annotations

import pytest

from plan_llama.memory.cuda_pool import Chip, Operations, needs, pool_bytes, uses_mmq
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.ggml import F32, Graph, Node
from plan_llama.memory.ggml import tensor as new_tensor
from plan_llama.memory.scheduler import BackendKind
from plan_llama.memory.types import Settings
from plan_llama.models.ggml_types import by_name
from plan_llama.units import GIB, MIB
from tests.oracle_cases import table

AMPERE, VOLTA, PASCAL, P40 = Chip("8.6"), Chip("7.0"), Chip("6.0"), Chip("6.1")
FIXED = 128 * 128 * 132 * 4 + 512 * 144  # partial tiles, and a tile of slack


def sizes(node: Node, chip: Chip) -> list[int]:
    """What one operation holds."""
    return [size for need in needs(Operations([node]).at(()), chip) for size in need]


def product(kind: str, tokens: int = 512, *, precise: bool = False) -> Node:
    """A [4096, 11008] weight times the rows of so many tokens."""
    weight = new_tensor(by_name(kind), 4096, 11008)
    node = Graph().mul_mat(weight, new_tensor(F32, 4096, tokens))
    node.precise = precise
    return node


def test_quantised_weights_are_multiplied_with_quantised_activations() -> None:
    # ne11 * ne10_padded * sizeof(block_q8_1_mmq) / 128
    assert sizes(product("q4_K"), AMPERE) == [512 * 4096 * 144 // 128 + FIXED]


def test_volta_turns_the_whole_matrix_into_f16_for_cublas() -> None:
    # prefer_f32_output: no third buffer for the result
    assert sizes(product("q4_K"), VOLTA) == [4096 * 11008 * 2, 4096 * 512 * 2]
    assert sizes(product("q4_K", 63), VOLTA) == [63 * 4096 * 144 // 128 + FIXED]


def test_a_p100_does_so_too_and_keeps_the_result_in_f16() -> None:
    assert sizes(product("q4_K"), PASCAL) == [4096 * 11008 * 2, 4096 * 512 * 2, 11008 * 512 * 2]


@pytest.mark.parametrize(
    ("kind", "chip", "expected"),
    [
        ("f16", AMPERE, [4096 * 512 * 2, 11008 * 512 * 2]),
        ("bf16", AMPERE, [4096 * 512 * 2]),  # the result is f32
        ("bf16", VOLTA, [4096 * 11008 * 4]),  # no fast bf16: computed in f32
        ("f16", P40, [4096 * 11008 * 4]),  # f16 is slow on compute capability 6.1
        ("f32", AMPERE, []),
    ],
)
def test_weights_that_are_not_quantised_go_to_cublas(kind: str, chip: Chip, expected: list[int]) -> None:
    assert sizes(product(kind), chip) == expected


def test_scores_are_computed_in_f32() -> None:
    # ggml_prec_set_acc(kq, GGML_PREC_F32), src/llama-graph.cpp: K is copied to f32
    assert sizes(product("f16", precise=True), AMPERE) == [4096 * 11008 * 4]


def test_experts() -> None:
    weight = new_tensor(by_name("q4_K"), 2048, 768, 128)
    node = Graph().mul_mat_id(weight, new_tensor(F32, 2048, 1, 512), new_tensor(by_name("i32"), 8, 512))
    assert sizes(node, AMPERE) == [512 * 8 * 2048 * 144 // 128 + FIXED, 2 * 512 * 8 * 4]
    # sorted rows in and out, then one expert at a time
    rows = [2 * 512 * 8 * 4, 512 * 8 * 2048 * 4, 512 * 8 * 768 * 4]
    assert sizes(node, VOLTA) == [*rows, 2048 * 768 * 2, 2048 * 512 * 2]


def test_top_k_sorts_64_mib_at_a_time() -> None:
    scores = new_tensor(F32, 4096, 512)
    assert sizes(Graph().top_k(scores, 2048), AMPERE) == [8 * MIB, 5 * 8 * MIB]
    scores = new_tensor(F32, 131072, 512)
    assert sizes(Graph().top_k(scores, 2048), AMPERE) == [64 * MIB, 5 * 64 * MIB]


def test_few_experts_are_sorted_in_place() -> None:
    assert sizes(Node("ARGSORT", by_name("i32"), (256, 512, 1, 1), [new_tensor(F32, 256, 512)]), AMPERE) == []


@pytest.mark.parametrize(
    ("chip", "kind", "tokens", "experts", "expected"),
    [
        ("", "q4_K", 512, 0, True),
        ("12.0", "iq2_xs", 512, 0, True),
        ("8.6", "iq1_m", 512, 0, False),
        ("7.0", "q4_K", 512, 128, False),
        ("6.1", "q4_K", 512, 0, True),
        ("6.0", "q4_K", 512, 128, True),
        ("5.2", "q4_K", 512, 128, False),
        ("gfx942", "q6_K", 512, 0, True),
        ("gfx90a", "q4_K", 512, 0, False),
        ("gfx90a", "q4_K", 256, 0, True),
        ("gfx90a", "q4_K", 512, 128, True),
        ("gfx1100", "q4_K", 512, 0, True),
        ("gfx1100", "q6_K", 512, 0, False),
        ("gfx1100", "q6_K", 512, 64, True),
        ("gfx1151", "q6_K", 256, 0, True),
        ("gfx1151", "iq2_xs", 512, 0, True),
        ("gfx1201", "q2_K", 512, 0, True),
        ("gfx1030", "q2_K", 512, 0, True),
        ("gfx900", "q4_K", 512, 0, False),
        ("gfx906", "q4_K", 512, 0, True),
    ],
)
def test_which_kernels_a_chip_has(chip: str, kind: str, tokens: int, experts: int, expected: bool) -> None:
    """ggml_cuda_should_use_mmq, mmq.cu."""
    assert uses_mmq(by_name(kind), Chip(chip), tokens, experts) is expected


def test_virtual_memory_holds_the_largest_operation() -> None:
    assert pool_bytes([[100, 50], [120], [10, 10]], AMPERE) == 150


def test_without_virtual_memory_a_buffer_that_is_too_small_is_kept() -> None:
    # 105 and 52 for the first operation; the second needs a larger one; the third takes those that are there
    assert pool_bytes([[100, 50], [120], [40, 110]], Chip("gfx1100")) == 105 + 52 + 126


def pool_at(context: int, *, flash_attn: bool, chip: str) -> int:
    cards = [
        DeviceMemory(free_bytes=80 * GIB, kind=BackendKind(alignment=128, cuda_sizes=True, chip=Chip(chip)))
    ]
    chosen = Settings(context=context, gpu_layers=99, flash_attn=flash_attn)
    return buffers(table("llama-3.1-8b-q4_k_m"), chosen, cards).devices[0].pool_bytes


def test_without_flash_attention_the_scores_lie_in_the_pool_a_second_time() -> None:
    # V times scores: the scores as f16, and the result; K as f32 is less
    scores, result = 32768 * 512 * 32 * 2, 128 * 512 * 32 * 2
    assert pool_at(32768, flash_attn=False, chip="8.6") == scores + result + 100 * MIB  # cuBLAS
    assert pool_at(32768, flash_attn=True, chip="8.6") < 20 * MIB


@pytest.mark.parametrize("name", ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0", ""])
def test_cards_that_take_the_same_kernels_are_one_chip(name: str) -> None:
    own, shared = Chip(name), Chip.of(name)
    assert shared == Chip.of("8.6")
    assert (own.fast_f16, own.fast_bf16) == (shared.fast_f16, shared.fast_bf16)
    for kind, tokens, experts in (("q4_K", 1, 0), ("q4_K", 512, 128), ("q6_K", 64, 8), ("f16", 512, 0)):
        assert uses_mmq(by_name(kind), own, tokens, experts) == uses_mmq(
            by_name(kind), shared, tokens, experts
        )


@pytest.mark.parametrize("name", ["6.0", "6.1", "7.0", "7.5", "gfx1100", "gfx942"])
def test_others_are_their_own(name: str) -> None:
    assert Chip.of(name) == Chip(name)
