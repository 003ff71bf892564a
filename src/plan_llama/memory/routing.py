"""How a mixture of experts limits its choice, as build_moe_ffn of src/llama-graph.cpp does (b11434)."""

from __future__ import annotations

from plan_llama.memory.ggml import Graph, Node


def grouped(g: Graph, selection: Node, experts: int, tokens: int, groups: tuple[int, int]) -> Node:
    """The choice of expert groups before experts (build_moe_ffn; DeepSeek-V3)."""
    count, used = groups
    size = experts // count
    parts = g.reshape(selection, size, count, tokens)
    best = g.argsort_top_k(parts, 2)
    scores = g.get_rows(g.reshape(parts, 1, size, count, tokens), best)
    scores = g.sum_rows(g.reshape(scores, 2, count, tokens))
    scores = g.reshape(scores, count, tokens)
    chosen = g.argsort_top_k(scores, used)
    kept = g.get_rows(parts, chosen)
    masked = g.set_rows(g.like("FILL", parts), kept, chosen)
    return g.reshape(masked, experts, tokens)
