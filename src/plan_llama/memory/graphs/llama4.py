"""The graph of Llama 4."""

from __future__ import annotations

from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.decoder import Decoder

_UNNORMED_EXPERTS = 128  # Maverick


class Llama4(Decoder):
    """Windows, layers without rope, experts that see weighed inputs (src/models/llama4.cpp)."""

    fixed_gating = 2
    fixed_normalise = False
    weighs_input = True

    def attention_inputs(self) -> None:
        """build_inp_attn_scale and build_attn_inp_kv."""
        self.temperature = self.g.input(F32, 1, 1, self.batch.tokens)
        super().attention_inputs()

    @property
    def unrotated(self) -> frozenset[int]:
        """Every fourth layer; without windows the last."""
        return self.every_fourth_layer(3) if self.windowed else frozenset((self.spec.layers - 1,))

    def positioned(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Rope and then norms without weights, or a temperature."""
        g = self.g
        if il in self.unrotated:
            return g.like("MUL", q, self.temperature), k
        q, k = self.rope(q, il), self.rope(k, il)
        if self.spec.int_param("expert_count", 0) != _UNNORMED_EXPERTS:
            q, k = g.like("RMS_NORM", q), g.like("RMS_NORM", k)
        return q, k
