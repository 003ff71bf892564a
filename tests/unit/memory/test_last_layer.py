"""Which weights only tokens go through whose output is asked for: where src/models/*.cpp of b11434 pick the rows."""

from __future__ import annotations

import pytest

from plan_llama.memory.last_layer import for_outputs
from plan_llama.models.types import ModelSpec
from tests.conformance_cases import spec
from tests.small_models import llama_like, qwen3moe_like


def names(model: ModelSpec) -> set[str]:
    """The tensors' names within the last layer."""
    front = f"blk.{model.layers - 1}."
    found = [model.tensors[index].name for index in for_outputs(model)]
    assert all(name.startswith(front) for name in found)
    return {name.removeprefix(front).removesuffix(".weight") for name in found}


def test_rows_are_picked_behind_attention() -> None:
    # llama.cpp, qwen3moe.cpp: if (il == n_layer - 1 && inp_out_ids), between build_attn and the norm that follows
    assert names(llama_like()) == {"ffn_norm", "ffn_gate", "ffn_up", "ffn_down"}
    assert names(qwen3moe_like()) == {
        *("ffn_norm", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    }


def test_a_block_for_drafting_is_not_the_last_layer() -> None:
    model = spec("real", "glm-4.5-air-q4_k_m")
    assert any(tensor.name.startswith("blk.46.") for tensor in model.tensors)
    assert all(model.tensors[index].name.startswith("blk.45.") for index in for_outputs(model))
    assert "ffn_down_exps" in names(model)


@pytest.mark.parametrize("name", ["gpt-oss-20b-mxfp4", "qwen3-next-80b-a3b-q4_k_m", "gemma-4-26b-a4b-q4_k_m"])
def test_some_pick_them_behind_the_last_layer(name: str) -> None:
    # openai-moe.cpp, qwen3next.cpp, gemma4.cpp: in the layer only with cparams.embeddings_nextn_masked, which is false
    assert not for_outputs(spec("real", name))


def test_the_router_of_smallthinker_sees_every_token() -> None:
    # smallthinker.cpp: its product is made before attention, of the layer's input, and its rows are picked behind
    model = spec("tiny", "smallthinker-moe")
    assert {"ffn_down_exps", "ffn_norm"} <= names(model)
    assert "ffn_gate_inp" not in names(model)


def test_of_a_graph_that_is_not_known_every_token_is_counted() -> None:
    assert not for_outputs(spec("tiny", "hy_v4-moe"))  # picked behind the streams' sum: hy-v4.cpp
