"""ggml's scheduler: which backend runs what, and what is copied (ggml-backend.cpp, ggml-cuda.cu, b11434)."""

from __future__ import annotations

import pytest

from plan_llama.memory.ggml import F32, Graph, Node
from plan_llama.memory.ggml import tensor as new_tensor
from plan_llama.memory.scheduler import (
    CPU_KIND,
    PIPELINE_COPIES,
    BackendKind,
    SchedulerOptions,
    compute_sizes,
)

GPU = BackendKind(alignment=32, cuda_sizes=True)
WEIGHT = 64 * 64 * 4
ROWS = 64 * 32 * 4  # 32 tokens: from here on weights on the host are copied to the GPU


def weight(backend: int) -> Node:
    """A [64, 64] weight of f32 in a backend's buffer."""
    node = new_tensor(F32, 64, 64)
    node.buffer, node.is_weight = backend, True
    return node


def chain(places: list[int], tokens: int = 32) -> Graph:
    """Products of an input with one weight after the other."""
    graph = Graph()
    x = graph.input(F32, 64, tokens)
    for place in places:
        x = graph.mul_mat(weight(place), x)
    graph.expand(x)
    return graph


def test_a_product_runs_where_its_weight_lies() -> None:
    sizes = compute_sizes(chain([0]), SchedulerOptions(kinds=(GPU, CPU_KIND)))
    assert sizes == (2 * ROWS, ROWS)  # the input's copy and the result; the input itself stays on the CPU


@pytest.mark.parametrize(
    ("tokens", "op_offload", "on_gpu"), [(32, True, True), (31, True, False), (32, False, False)]
)
def test_a_large_batch_takes_the_weight_to_the_gpu(tokens: int, op_offload: bool, on_gpu: bool) -> None:
    options = SchedulerOptions(kinds=(GPU, CPU_KIND), op_offload=op_offload)
    rows = 64 * tokens * 4
    sizes = compute_sizes(chain([1], tokens), options)
    assert sizes == ((WEIGHT + 2 * rows, rows) if on_gpu else (0, 2 * rows))


def test_the_next_copied_weight_reuses_the_place_of_the_one_before() -> None:
    sizes = compute_sizes(chain([1, 1, 1]), SchedulerOptions(kinds=(GPU, CPU_KIND)))
    # first: weight + input + result. Then a new split: the second weight lies where the first one was.
    assert sizes == (WEIGHT + 2 * ROWS, ROWS)


def test_offload_goes_to_the_first_gpu_only() -> None:
    gpu0, gpu1, cpu = compute_sizes(chain([2]), SchedulerOptions(kinds=(GPU, GPU, CPU_KIND)))
    assert (gpu0, gpu1, cpu) == (WEIGHT + 2 * ROWS, 0, ROWS)


def test_an_activation_crosses_a_card_boundary_once() -> None:
    gpu0, gpu1, cpu = compute_sizes(chain([0, 1]), SchedulerOptions(kinds=(GPU, GPU, CPU_KIND)))
    assert (gpu0, gpu1, cpu) == (2 * ROWS, 2 * ROWS, ROWS)


def test_pipelining_keeps_every_copy_of_what_is_handed_over() -> None:
    options = SchedulerOptions(kinds=(GPU, GPU, CPU_KIND), copies=PIPELINE_COPIES)
    gpu0, gpu1, cpu = compute_sizes(chain([0, 1]), options)
    assert cpu == PIPELINE_COPIES * ROWS
    assert gpu0 == PIPELINE_COPIES * ROWS + ROWS
    assert gpu1 == PIPELINE_COPIES * ROWS + ROWS


def test_an_op_without_weights_follows_its_neighbours() -> None:
    graph = Graph()
    x = graph.mul_mat(weight(0), graph.input(F32, 64, 32))
    graph.expand(graph.mul_mat(weight(0), graph.like("SCALE", x)))
    sizes = compute_sizes(graph, SchedulerOptions(kinds=(GPU, CPU_KIND)))
    assert sizes == (2 * ROWS, ROWS)
