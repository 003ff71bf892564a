"""Graphs of the LFM2 family: short gated convolutions and attention."""

from __future__ import annotations

from dataclasses import replace

from plan_llama.memory.blocks import UndescribedGraph
from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs.recurrent import Recurrent


class Lfm2(Recurrent):
    """Short convolutions, every few layers attention (src/models/lfm2.cpp, lfm2moe.cpp)."""

    default_gating = 2
    fixed_normalise = True

    def attention_inputs(self) -> None:
        """build_inp_mem_hybrid."""
        if not self.spec.hparams.get("attention.causal", True):
            raise UndescribedGraph("attention.causal: a centred convolution")
        super().attention_inputs()
        if self.windowed:  # build_inp_mem_hybrid_iswa makes no rotations
            self.window = replace(self.window, rotation_k=None, rotation_v=None)
            self.full = replace(self.full, rotation_k=None, rotation_v=None)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Norm, convolution or attention, residual, norm, feed-forward, residual."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = b.norm(x, f"{prefix}.attn_norm")
        cur = self.short_conv(cur, il) if il in self.recurrent else self.attention_of(cur, il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        x = g.like("ADD", x, cur)
        cur = self.feed_forward(b.norm(x, f"{prefix}.ffn_norm"), il)
        return g.like("ADD", x, cur)

    def short_conv(self, x: Node, il: int) -> Node:
        """build_shortconv_block: a gate before and one after."""
        b, g, prefix = self.b, self.g, f"blk.{il}.shortconv"
        parts = g.mul_mat(b.w(f"{prefix}.in_proj.weight"), self.per_sequence(x))
        width = parts.ne[0] // 3
        before, after, value = (g.view(parts, (width, *parts.ne[1:3]), parts.nb[1:3]) for _ in range(3))
        kernel = b.w(f"{prefix}.conv.weight")
        state = self.conv_state(kernel.ne[0] - 1, width, il)
        conv = self.conv_step(state, g.like("MUL", before, value), il)
        out = g.like("MUL", after, g.ssm_conv(conv, kernel))
        return self.flat(g.mul_mat(b.w(f"{prefix}.out_proj.weight"), out))

    def head(self, x: Node) -> None:
        """The final norm has another name in these files."""
        x = self.b.norm(x, "token_embd_norm")
        x.is_output = True
        self.logits(x)
