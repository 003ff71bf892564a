"""Graphs of the Hunyuan family."""

from __future__ import annotations

from plan_llama.memory.graphs.decoder import Decoder


class Hunyuan(Decoder):
    """The heads' norms follow the rope (src/models/hunyuan-vl.cpp, also for hunyuan-dense; hunyuan-moe.cpp)."""

    rope_before_norms = True
    fixed_gating = 1
    fixed_normalise = True
