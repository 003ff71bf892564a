"""Graphs of the Gemma family."""

from __future__ import annotations

from plan_llama.memory.graphs.decoder import Decoder


class Gemma3(Decoder):
    """Scaled embeddings and queries, norms behind both branches, windows (src/models/gemma3.cpp)."""

    post_norms = True
    scaled_embedding = True
    scaled_query = True

    def caps_logits(self) -> bool:
        """Where the header says how far."""
        return bool(self.spec.hparams.get("final_logit_softcapping"))
