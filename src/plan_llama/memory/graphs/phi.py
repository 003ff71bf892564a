"""Graphs of the Phi family."""

from __future__ import annotations

from plan_llama.memory.graphs.decoder import Decoder


class Phi3(Decoder):
    """Scaled queries, gate and up in one matrix or experts (src/models/phi3.cpp, also for phimoe)."""

    scaled_query = True
    residual_first = True
    fixed_gating = 1
    fixed_normalise = True
