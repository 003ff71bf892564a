"""ggml's allocator: sequences worked out by hand from ggml_dyn_tallocr and ggml_gallocr (ggml-alloc.c, b11434)."""

from __future__ import annotations

import pytest

from plan_llama.memory.ggml import F32, Graph, Node
from plan_llama.memory.ggml import tensor as new_tensor
from plan_llama.memory.replay import Tape
from plan_llama.memory.scheduler import (
    CPU_KIND,
    CUDA_KIND,
    OTHER_GPU_KIND,
    BackendKind,
    SchedulerOptions,
    alloc_size,
    compute_sizes,
    padded_bytes,
)
from plan_llama.models.ggml_types import by_name

ONE = 128  # bytes of an [8, 4] tensor of f32


def weight(*ne: int, backend: int = 0) -> Node:
    """A weight that lies in a backend's buffer already."""
    node = new_tensor(F32, *ne)
    node.buffer, node.is_weight = backend, True
    return node


def size_of(graph: Graph) -> int:
    """The compute buffer of a graph that runs on the CPU alone."""
    (size,) = compute_sizes(graph, SchedulerOptions(kinds=(CPU_KIND,)))
    return size


# -- free blocks ------------------------------------------------------------------------------------------------------


def after(
    *sizes: int, alignment: int = 32, freed: tuple[int, ...] = (), then: tuple[int, ...] = ()
) -> list[int]:
    """Where blocks of these sizes lie when the freed ones were given back before the last ones were taken; and, last,
    the size of the whole."""
    tape = Tape(alignment)
    for size in sizes:
        tape.take(size)
    for block in freed:
        tape.give_back(block)
    for size in then:
        tape.take(size)
    return [*tape.offsets(()), tape.run(()).size_bytes]


def test_an_empty_block_keeps_its_neighbours_together() -> None:
    # the empty block at 32 is given back inside the 64 bytes at 0: afterwards everything is free in one piece
    tape = Tape(32)
    first, empty = tape.take(32), tape.take(0)
    tape.give_back(first)
    second = tape.take(64)
    tape.give_back(empty)
    tape.give_back(second)
    tape.take(96)
    assert tape.offsets(()) == (0, 32, 0, 0)
    assert tape.run(()).size_bytes == 96


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    # 128 bytes are free at 0 and 64 at 160; 64 bytes are left at 64, too few for the last one
    found = after(100, 32, 60, 32, freed=(0, 2), then=(50, 33, 65))
    assert found == [0, 128, 160, 224, 160, 0, 256, 256 + 96]


def test_of_equal_blocks_the_last_is_taken() -> None:
    assert after(*[32] * 5, freed=(0, 2), then=(32,))[5] == 64


def test_the_block_without_end_is_the_last_resort() -> None:
    # a worse fit among the free blocks comes before growing
    assert after(64, 32, freed=(0,), then=(32,)) == [0, 64, 0, 96]


def test_neighbours_are_merged_on_both_sides() -> None:
    assert after(*[32] * 4, freed=(0, 2, 1), then=(96,))[4] == 0
    # the last one merges with the block without end
    assert after(*[32] * 4, freed=(0, 2, 1, 3), then=(416,))[4:] == [0, 416]


def test_sizes_are_rounded_up_to_the_alignment() -> None:
    assert after(1, 129, 1, alignment=128) == [0, 128, 384, 512]


def test_the_front_of_a_block_is_kept() -> None:
    tape = Tape(32)
    block = tape.take(128)
    tape.shrink(block, 32)
    tape.take(96)
    tape.give_back(block)
    tape.take(32)
    assert tape.offsets(()) == (0, 32, 0)


def repeated(rounds: int) -> int:
    """A first block of 32 that every part replaces by one of 64, beside a scratch block of its own: three parts are
    recorded, and the last is gone through again."""
    tape = Tape(32)
    carried = tape.take(32)
    for mark in (1, 2, 3):
        tape.section(mark)
        scratch = tape.take(96)
        taken = tape.take(64)
        tape.give_back(scratch)
        tape.give_back(carried)
        carried = taken
    tape.section(4)
    tape.take(320)
    tape.repeat(3, 0)
    return tape.run((rounds,)).size_bytes


def unrolled(parts: int) -> int:
    """The same with every part recorded."""
    tape = Tape(32)
    carried = tape.take(32)
    for _ in range(parts):
        scratch = tape.take(96)
        taken = tape.take(64)
        tape.give_back(scratch)
        tape.give_back(carried)
        carried = taken
    tape.take(320)
    return tape.run(()).size_bytes


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 6, 71])
def test_a_part_is_gone_through_again(rounds: int) -> None:
    assert repeated(rounds) == unrolled(3 + rounds)


def test_a_part_that_does_something_else_is_not_repeated() -> None:
    tape = Tape(32)
    for mark, size in ((1, 32), (2, 32), (3, 64)):
        tape.section(mark)
        tape.take(size)
    tape.repeat(3, 0)
    assert tape.run((10,)).size_bytes == 128


# -- lifetimes --------------------------------------------------------------------------------------------------------


def test_an_op_takes_over_a_source_that_nobody_else_reads() -> None:
    graph = Graph()
    x = graph.input(F32, 8, 4)
    graph.expand(graph.like("SCALE", graph.like("SCALE", x)))
    assert size_of(graph) == ONE


def test_a_source_that_is_read_again_is_kept() -> None:
    graph = Graph()
    x = graph.input(F32, 8, 4)
    graph.expand(graph.like("ADD", graph.like("SCALE", x), x))
    assert size_of(graph) == 2 * ONE


def test_a_product_never_overwrites_its_source() -> None:
    graph = Graph()
    w = weight(8, 8)
    x = graph.input(F32, 8, 4)
    for _ in range(5):
        x = graph.mul_mat(w, x)
    graph.expand(x)
    assert size_of(graph) == 2 * ONE, "a chain needs two places, taken in turn"


def test_an_output_is_never_freed() -> None:
    graph = Graph()
    w = weight(8, 8)
    first = graph.mul_mat(w, graph.input(F32, 8, 4))
    first.is_output = True
    graph.expand(graph.mul_mat(w, graph.mul_mat(w, first)))
    # the input's place is free for the second product; the third needs a new one
    assert size_of(graph) == 3 * ONE


def test_an_output_is_not_overwritten() -> None:
    graph = Graph()
    first = graph.mul_mat(weight(8, 8), graph.input(F32, 8, 4))
    first.is_output = True
    last = graph.like("SCALE", graph.like("SCALE", first))
    graph.expand(last)
    assert size_of(graph) == 2 * ONE, "the scaled copy lies where the input was"


@pytest.mark.parametrize(("read_again", "places"), [(False, 2), (True, 3)])
def test_views_keep_their_source_alive(read_again: bool, places: int) -> None:
    graph = Graph()
    w = weight(8, 8)
    x = graph.input(F32, 8, 4)
    later = graph.reshape(x, 8, 4)
    second = graph.mul_mat(w, graph.mul_mat(w, graph.reshape(x, 8, 4)))
    graph.expand(graph.like("ADD", second, later) if read_again else second)
    assert size_of(graph) == places * ONE


def test_a_view_is_not_taken_over() -> None:
    graph = Graph()
    x = graph.input(F32, 8, 4)
    graph.expand(graph.like("SCALE", graph.reshape(x, 4, 8)))
    # gallocr marks only what has memory of its own as allocated, so the view is no candidate for reuse
    assert size_of(graph) == 2 * ONE


# -- sizes of tensors -------------------------------------------------------------------------------------------------


def test_cuda_pads_the_last_row_of_a_quantised_cache() -> None:
    """What GLM-5.1 with 202,752 cells of q8_0 took on a stand-in that aligns to 32 (tests/data/oracle)."""
    q8_0, cells = by_name("q8_0"), 202752
    stand_in = BackendKind(alignment=32, cuda_sizes=True)
    latent = padded_bytes(q8_0.nbytes(576) * cells, q8_0, 576, stand_in)
    index = padded_bytes(q8_0.nbytes(128) * cells, q8_0, 128, stand_in)
    assert 78 * (latent + index) == 11_829_432_576


@pytest.mark.parametrize(
    ("kind", "row", "backend", "expected"),
    [
        ("q8_0", 512, CUDA_KIND, 10 * 544),  # whole 512s need no padding; 5,440 is not a whole 128
        ("q8_0", 480, CUDA_KIND, 10 * 510 + 34),
        ("f16", 480, CUDA_KIND, 10 * 960),
        ("q8_0", 480, OTHER_GPU_KIND, 10 * 510),
        ("q8_0", 480, CPU_KIND, 10 * 510),
    ],
)
def test_padding_by_backend(kind: str, row: int, backend: BackendKind, expected: int) -> None:
    size = by_name(kind).nbytes(row) * 10
    assert (
        padded_bytes(size, by_name(kind), row, backend)
        == -(-expected // backend.alignment) * backend.alignment
    )


@pytest.mark.parametrize(("kind", "extra"), [("f16", 0), ("q8_0", 2 * 2 * 128 * 256 * 2)])
def test_flash_attention_on_cuda_keeps_f16_copies_of_a_quantised_cache(kind: str, extra: int) -> None:
    graph = Graph()
    q = graph.input(F32, 128, 32, 8)
    k, v = (new_tensor(by_name(kind), 128, 256, 2) for _ in range(2))
    node = graph.flash_attn(q, k, v, None, None)
    assert alloc_size(node, CPU_KIND) == 128 * 8 * 32 * 4
    assert alloc_size(node, CUDA_KIND) == 128 * 8 * 32 * 4 + extra
