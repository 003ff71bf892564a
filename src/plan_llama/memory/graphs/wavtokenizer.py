"""WavTokenizer's decoder, which turns tokens of sound into spectra: convolutions over the whole batch, no cache.

Mirrors src/models/wavtokenizer-dec.cpp of llama.cpp b11434, and ggml_conv_1d and ggml_conv_1d_dw of ggml/src/ggml.c.
"""

from __future__ import annotations

from plan_llama.memory.ggml import F16, Node
from plan_llama.memory.graphs.decoder import Decoder

_ATTENTION, _NORM = 2, 5  # of the position network's layers; the others are residual convolutions


class WavTokenizer(Decoder):
    """The position network runs before the first block, then one ConvNeXt a block."""

    def inputs(self) -> Node:
        """Token rows, turned so that the tokens come first, through the position network."""
        g = self.g
        x = self._convolved("conv1d", self._turned(self.b.input_embedding()))
        for il in range(self.spec.int_param("posnet.block_count")):
            prefix = f"posnet.{il}"
            if il == _NORM:
                x = self._grouped(x, f"{prefix}.attn_norm")
            elif il == _ATTENTION:
                x = g.like("ADD", self._position_attention(x, prefix), x)
            else:
                cur = x
                for half in "12":
                    cur = self._grouped(cur, f"{prefix}.norm{half}")
                    cur = self._convolved(f"{prefix}.conv{half}", g.like("MUL", g.like("UNARY", cur), cur))
                x = g.like("ADD", cur, x)
        x = self.b.norm(self._turned(x), "token_embd_norm", op="NORM")
        return self._turned(x)

    def _turned(self, x: Node) -> Node:
        return self.g.cont(self.g.transpose(x))

    def _grouped(self, x: Node, name: str) -> Node:
        """build_norm over groups of channels."""
        g, b = self.g, self.b
        cur = g.like("GROUP_NORM", g.reshape(x, x.ne[0], 1, x.ne[1]))
        cur = g.like("MUL", g.reshape(cur, x.ne[0], x.ne[1]), b.w(f"{name}.weight"))
        return g.like("ADD", cur, b.w(f"{name}.bias"))

    def _convolved(self, name: str, x: Node, *, bias: bool = True) -> Node:
        """ggml_conv_1d with as many results as inputs: the windows in f16, and a product with them."""
        g, kernel = self.g, self.b.w(f"{name}.weight")
        width, inner, outer = kernel.ne[:3]
        windows = Node("IM2COL", F16, (width * inner, x.ne[0], 1, 1), [kernel, x])
        out = g.mul_mat(g.reshape(windows, width * inner, x.ne[0]), g.reshape(kernel, width * inner, outer))
        out = g.reshape(out, x.ne[0], outer, 1)
        return g.like("ADD", out, self.b.w(f"{name}.bias")) if bias else out

    def _position_attention(self, x: Node, prefix: str) -> Node:
        g, b = self.g, self.b
        cur = self._grouped(x, f"{prefix}.attn_norm")
        q, k, v = (self._convolved(f"{prefix}.attn_{name}", cur, bias=False) for name in "qkv")
        q, k, v = (
            g.like("ADD", node, b.w(f"{prefix}.attn_{name}.bias"))
            for node, name in zip((q, k, v), "qkv", strict=True)
        )
        scores = g.soft_max(g.mul_mat(self._turned(k), self._turned(q)))
        return self._convolved(f"{prefix}.attn_output", g.mul_mat(scores, v))

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - every token is wanted
        """A ConvNeXt: one filter per channel, then a feed-forward network."""
        if il >= self.spec.int_param("convnext.block_count"):
            return x
        g, b, prefix = self.g, self.b, f"convnext.{il}"
        kernel = b.w(f"{prefix}.dw.weight")
        length, channels = x.ne[:2]
        windows = Node(
            "IM2COL", F16, (kernel.ne[0], length, channels, 1), [kernel, g.reshape(x, length, 1, channels, 1)]
        )
        cur = g.mul_mat(windows, kernel)
        cur = g.like("ADD", g.reshape(cur, length, channels, 1), b.w(f"{prefix}.dw.bias"))
        cur = b.norm(self._turned(cur), f"{prefix}.norm", op="NORM")
        cur = b.mm(f"{prefix}.pw2", g.like("UNARY", b.mm(f"{prefix}.pw1", cur)))
        cur = g.like("MUL", cur, b.w(f"{prefix}.gamma.weight"))
        return g.like("ADD", self._turned(cur), x)

    def head(self, x: Node) -> None:
        """The spectrum of every token."""
        x = self.b.norm(self._turned(x), "output_norm", op="NORM")
        x = self.b.mm("output", x)
        x.is_output = True
        self.g.expand(x)
