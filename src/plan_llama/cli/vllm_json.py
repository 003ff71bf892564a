"""The JSON of a vLLM plan and check, with the keys of every other plan and vLLM's own beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from plan_llama.cli import plan_json
from plan_llama.cli.hardware import as_json as machine_json
from plan_llama.engines.launch import LaunchCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.solver.vllm.judge import Judged


def answer(
    *,
    checkpoint: Checkpoint | None,
    machine: Machine,
    judged: Judged | None,
    verdict: str,
    command: LaunchCommand | None,
    findings: Iterable[Finding],
    conversations: int,
) -> dict[str, Any]:
    """One object. `judged` is None where nothing could be laid out."""
    known = judged is not None and judged.footprint is not None
    return {
        "schema": plan_json.SCHEMA,
        "model": plan_json.model(checkpoint.spec) | _checkpoint(checkpoint) if checkpoint else None,
        "machine": machine_json(machine),
        "settings": settings(judged, conversations) if judged is not None and known else None,
        "memory": plan_json.memory(judged.footprint) if judged and judged.footprint else None,
        "speed": plan_json.speed(judged.speed) if judged and judged.speed else None,
        "verdict": verdict,
        "command": plan_json.launch(command),
        "findings": [plan_json.finding(item) for item in findings],
        "provenance": _provenance(checkpoint) if checkpoint else {},
    }


def settings(judged: Judged, conversations: int) -> dict[str, Any]:
    """The start; `kv_cache` is what vLLM logs as GPU KV cache size and maximum concurrency."""
    setup, start, capacity = judged.setup, judged.setup.start, judged.capacity
    layers = setup.checkpoint.spec.layers
    dtype = judged.backend.kv_dtype if judged.backend else setup.kv_dtype
    return {
        "context_per_slot": start.max_model_len,
        "context_pool": max(1, capacity.tokens if capacity else start.max_model_len),
        "parallel": conversations,
        "kv_unified": True,
        "batch": start.max_num_batched_tokens,
        "ubatch": start.max_num_batched_tokens,
        "flash_attn": True,
        "kv_type_k": dtype,
        "kv_type_v": dtype,
        "gpu_layers": layers + 1,
        "cpu_moe_layers": 0,
        "load_mode": "none",
        "threads": None,
        "tensor_parallel": start.ranks.tensor,
        "pipeline_parallel": start.ranks.pipeline,
        "data_parallel": start.ranks.data,
        "expert_parallel": start.ranks.expert,
        "decode_context_parallel": start.ranks.context,
        "nodes": setup.nodes,
        "max_num_seqs": start.max_num_seqs,
        "gpu_memory_utilization": start.utilisation,
        "kv_cache_memory_bytes": start.kv_bytes,
        "attention_backend": judged.backend.name if judged.backend else None,
        "kv_cache": {
            "block_size": judged.backend.block_size,
            "blocks": capacity.blocks,
            "tokens": capacity.tokens,
            "max_concurrency": capacity.concurrency,
            "longest_context": judged.longest,
        }
        if capacity and judged.backend
        else None,
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    quantisation = checkpoint.quantisation
    return {"checkpoint": checkpoint.location, "quantization": quantisation.method or None}


def _provenance(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "model": checkpoint.spec.source,
        "weights": "modelled",
        "kv_cache": "modelled",
        "overhead": "assumed",
        "speed": "modelled",
    }
