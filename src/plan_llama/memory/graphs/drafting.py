"""The block for drafting as a graph of its own (graph_mtp in src/models/*.cpp of llama.cpp b11434)."""

from __future__ import annotations

from plan_llama.memory.blocks import Builder
from plan_llama.memory.ggml import F32, I32
from plan_llama.memory.graphs.decoder import Decoder


def build(graph: Decoder, il: int) -> None:
    """A token's row and the state that the model left for it, put together; a layer; the head."""
    if graph.draft(il):
        return
    b, g, prefix = graph.b, graph.g, f"blk.{il}.nextn"
    tokens, width = graph.batch.tokens, graph.spec.int_param("embedding_length")
    rows = g.get_rows(b.w(own_or(b, f"{prefix}.embed_tokens", "token_embd")), g.input(I32, tokens))
    state = g.input(F32, width, tokens)
    graph.positions = g.input(I32, tokens * graph.positions_per_token())
    graph.out_ids = g.input(I32, graph.batch.outputs)
    graph.attention_inputs()
    both = g.concat(b.norm(rows, f"{prefix}.enorm"), b.norm(state, f"{prefix}.hnorm"), 0)
    x = graph.block(b.mm(f"{prefix}.eh_proj", both), il, last=False)
    x = b.norm(x, own_or(b, f"{prefix}.shared_head_norm", "output_norm").removesuffix(".weight"))
    x.is_output = True
    head = own_or(b, f"{prefix}.shared_head_head", "output" if b.has("output.weight") else "token_embd")
    logits = g.mul_mat(b.output_weight(head), g.get_rows(x, graph.out_ids))
    logits.is_output = True
    g.expand(logits)


def own_or(b: Builder, name: str, shared: str) -> str:
    """A tensor of the block for drafting, or the model's where it has none."""
    return f"{name if b.has(f'{name}.weight') else shared}.weight"
