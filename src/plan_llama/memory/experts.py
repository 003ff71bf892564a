"""A mixture of experts, as build_moe_ffn of src/llama-graph.cpp builds it (b11434)."""

from __future__ import annotations

from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.ggml import F32, I32, Graph, Node
from plan_llama.models.types import ModelSpec

# Their activations exceed f16, so build_moe_ffn asks for f32 (ggml_prec_set_src), which ggml-cuda has no kernel for:
# ggml_backend_cuda_device_supports_op refuses the experts' last product, and the CPU makes it.
EXACT_INPUTS = frozenset({"mistral4"})


def refused(spec: ModelSpec) -> frozenset[int]:
    """The experts' tensors, by index, whose products CUDA and HIP refuse."""
    if spec.architecture not in EXACT_INPUTS:
        return frozenset()
    return frozenset(i for i, tensor in enumerate(spec.tensors) if ".ffn_down_exps." in tensor.name)


def moe(
    b: Builder,
    x: Node,
    prefix: str,
    *,
    used: int,
    gating: str,
    normalise: bool,
    scale: bool,
    groups: tuple[int, int] = (1, 1),
    logits: Node | None = None,
    chosen: Node | None = None,
    weighs_input: bool = False,
    scaled: bool = True,
    clamped: bool = False,
    matrices: str = "exps",
    ranked: Node | None = None,
    chunk: int = 1,
) -> Node:
    """build_moe_ffn: router, selection, weights, the experts' three products and their sum.

    `gating` is softmax, sigmoid or softmax-weight; `groups` is (expert groups, groups used); `logits` are the
    router's, where it does not see `x`; `chosen` are experts that it does not choose. With `weighs_input` weights
    go in before the products (llama 4); `scaled`: scales beside experts are applied; `clamped`: gate and up are
    clamped. `matrices` is how the experts' tensors end; `ranked` is what they are chosen by, where it is not their
    probability; `chunk` is how many of the router's experts share one of them (grovemoe).
    """
    if used < 1:
        raise UndescribedGraph("expert_used_count")
    g, tokens = b.g, x.ne[1]
    if logits is None:
        logits = b.mm(f"{prefix}.ffn_gate_inp", x)
    experts = logits.ne[0]
    if gating == "softmax":
        probs = g.soft_max(logits)
    elif gating == "sigmoid":
        probs = g.like("UNARY", logits)
    elif gating == "sqrt-softplus":
        probs = g.like("SQRT", g.like("UNARY", logits))
    else:
        probs = logits
    selection = ranked or (logits if weighs_input else probs)
    bias = b.maybe(f"{prefix}.exp_probs_b.bias")
    if bias is not None:
        selection = g.like("ADD", probs, bias)
    if groups[0] > 1:
        selection = _grouped(g, selection, experts, tokens, groups)
    selected = chosen or g.argsort_top_k(selection, used)
    if chunk > 1:
        selected = g.cast(g.like("SCALE", g.cast(selected, F32)), I32)
    weights = g.get_rows(g.reshape(probs, 1, experts, tokens), selected)
    if gating == "softmax-weight":
        weights = g.soft_max(g.reshape(weights, used, tokens))
        weights = g.reshape(weights, 1, used, tokens)
    if normalise:
        weights = g.reshape(weights, used, tokens)
        total = g.like("CLAMP", g.sum_rows(weights))
        weights = g.reshape(g.like("DIV", weights, total), 1, used, tokens)
    if scale:
        weights = g.like("SCALE", weights)
    g.expand(weights)
    x = g.reshape(x, x.ne[0], 1, tokens)
    if weighs_input:
        x = g.like("MUL", g.repeat(x, x.ne[0], used, tokens, 1), weights)
    up_scale = f"{prefix}.ffn_up_{matrices}" if scaled else None
    if b.has(f"{prefix}.ffn_gate_up_{matrices}.weight"):
        both = _products(b, f"{prefix}.ffn_gate_up_{matrices}", x, selected, up_scale)
        half = (both.ne[0] // 2, both.ne[1], both.ne[2])
        hidden = g.glu(g.view(both, half, both.nb[1:3]), g.view(both, half, both.nb[1:3]))
    else:
        up = _products(b, f"{prefix}.ffn_up_{matrices}", x, selected, up_scale)
        if b.has(f"{prefix}.ffn_gate_{matrices}.weight"):
            name = f"{prefix}.ffn_gate_{matrices}"
            hidden = b.gate(_products(b, name, x, selected, name if scaled else None), up, clamped=clamped)
        else:
            hidden = g.like("UNARY", up)
    name = f"{prefix}.ffn_down_{matrices}"
    out = _products(b, name, hidden, selected, name if scaled else None)
    out.cpu_only = out.op == "MUL_MAT_ID" and b.spec.architecture in EXACT_INPUTS
    if not weighs_input:
        out = g.like("MUL", out, weights)
    g.expand(out)
    parts = [g.view(out, (out.ne[0], tokens), (out.nb[2],)) for _ in range(used)]
    g.expand(*parts)
    total = parts[0]
    for part in parts[1:]:
        total = g.like("ADD", total, part)
        g.expand(total)
    return g.cont(total) if used == 1 else total


def _products(b: Builder, name: str, x: Node, ids: Node, scale: str | None) -> Node:
    """build_lora_mm_id with a bias, where there is one; `scale` names the tensor whose scales are applied."""
    g = b.g
    out = g.mul_mat_id(b.w(f"{name}.weight"), x, ids)
    factors = None if scale is None else b.maybe(f"{scale}.scale")
    if factors is not None:
        experts = factors.ne[0]
        each = g.repeat(g.reshape(factors, 1, experts, 1), 1, experts, x.ne[2], 1)
        out = g.like("MUL", out, g.get_rows(each, ids))
    bias = b.maybe(f"{name}.bias")
    return out if bias is None else g.like("ADD_ID", out, bias, ids)


def _grouped(g: Graph, selection: Node, experts: int, tokens: int, groups: tuple[int, int]) -> Node:
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
