"""The JSON of a plan and of a check: plain values with the keys that programs build on (schema/plan.schema.json)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plan_llama.cli import images
from plan_llama.cli.hardware import as_json as machine_json
from plan_llama.engines.launch import FurtherCommand, LaunchCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine, Source
from plan_llama.memory.footprint import Footprint
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import DeviceBytes, Settings
from plan_llama.models.spec import active_parameters
from plan_llama.models.types import Download, ModelSpec
from plan_llama.solver.types import Candidate, Plan, Rung
from plan_llama.speed.types import Load, Rate, SpeedEstimate

SCHEMA = 1


def answer(
    *,
    table: ModelTable,
    machine: Machine,
    chosen: Candidate | None,
    verdict: str,
    command: LaunchCommand | None,
    findings: Iterable[Finding],
    provenance: Mapping[str, Source],
) -> dict[str, Any]:
    """What a plan and a check have in common. `chosen` is None where nothing could be worked out."""
    return {
        "schema": SCHEMA,
        "model": model(table.spec),
        "machine": machine_json(machine),
        "settings": settings(table, chosen) if chosen else None,
        "memory": memory(chosen.footprint) if chosen else None,
        "speed": speed(chosen.speed) if chosen else None,
        "verdict": verdict,
        "command": launch(command),
        "findings": [finding(item) for item in findings],
        "provenance": dict(provenance),
    }


def plan_extras(plan: Plan) -> dict[str, Any]:
    """What only a plan has: the context ladder, the alternatives, the working."""
    return {
        "ladder": [rung(item) for item in plan.ladder],
        "alternatives": [
            {"what": item.what, "effect": item.effect} for item in (*plan.relaxations, *plan.alternatives)
        ],
        "trace": list(plan.trace),
    }


def model(spec: ModelSpec) -> dict[str, Any]:
    """The model's facts."""
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "quant": spec.quant,
        "file_bytes": spec.file_bytes,
        "parameters": spec.parameters,
        "active_parameters": active_parameters(spec),
        "layers": spec.layers,
        "context_train": spec.context_train or None,
        "source": spec.source,
        "path": spec.path,
        "present": spec.present,
        "data_note": spec.data_note,
        "download": download(spec.download),
        "projector": images.facts(spec.projector) if spec.projector else None,
    }


def download(item: Download | None) -> dict[str, Any] | None:
    """How to get the file."""
    if item is None:
        return None
    return {
        "repo": item.repo,
        "quant": item.quant,
        "files": list(item.files),
        "size_bytes": item.size_bytes,
        "argv": list(item.argv),
        "path": item.path,
        "url": item.url,
    }


def settings(table: ModelTable, chosen: Candidate) -> dict[str, Any]:
    """The settings; contexts both of one conversation and of the pool."""
    item: Settings = chosen.settings
    return {
        "context_per_slot": item.slot_limit or item.context_per_slot,
        "context_pool": item.context,
        "parallel": item.parallel,
        "kv_unified": item.kv_unified,
        "batch": item.batch,
        "ubatch": item.ubatch,
        "flash_attn": item.flash_attn,
        "kv_type_k": item.kv_type_k,
        "kv_type_v": item.kv_type_v,
        "gpu_layers": min(item.gpu_layers, table.blocks + 1),
        "layers_on_gpu": chosen.gpu_block_layers,
        "cpu_moe_layers": chosen.cpu_moe_layers,
        "cpu_ffn_layers": chosen.cpu_ffn_layers,
        "cpu_weight_layers": chosen.cpu_weight_layers,
        "devices": list(item.devices),
        "split_mode": item.split_mode,
        "tensor_split": list(item.tensor_split),
        "main_gpu": item.main_gpu,
        "overrides": [
            {"pattern": o.pattern, "device": "host" if o.device < 0 else o.device} for o in item.overrides
        ],
        "kv_offload": item.kv_offload,
        "op_offload": item.op_offload,
        "offload_min_batch": item.offload_min_batch,
        "repack": item.repack,
        "swa_full": item.swa_full,
        "load_mode": item.load_mode,
        "threads": item.threads,
        "threads_batch": item.threads_batch,
        "cache_ram_bytes": item.cache_ram_bytes,
        "ctx_checkpoints": item.ctx_checkpoints,
        "draft_layers": item.draft_layers,
        "mmproj": item.mmproj,
        "mmproj_offload": item.mmproj_offload,
        "image_max_tokens": item.image_max_tokens,
    }


def _buffers(part: DeviceBytes) -> dict[str, int]:
    return {
        "weights_bytes": part.weights_bytes,
        "context_bytes": part.context_bytes,
        "compute_bytes": part.compute_bytes,
    }


def memory(used: Footprint) -> dict[str, Any]:
    """Bytes by device and pool; steady state, and the peak of load and long prompts."""
    return {
        "devices": [
            {
                "name": device.name,
                "pool": device.pool,
                "weights_bytes": device.weights_bytes,
                "context_bytes": device.context_bytes,
                "compute_bytes": device.compute_bytes,
                "overhead_bytes": device.overhead_bytes,
                "projector_bytes": device.projector_bytes,
                "fused_bytes": device.fused_bytes,
                "pool_bytes": device.pool_bytes,
                "total_bytes": device.total_bytes,
                "free_bytes": device.free_bytes,
            }
            for device in used.devices
        ],
        "host": {
            "weights_bytes": used.host.weights_bytes,
            "context_bytes": used.host.context_bytes,
            "compute_bytes": used.host.compute_bytes,
            "cache_bytes": used.host.cache_bytes,
            "projector_bytes": used.host.projector_bytes,
            "lazy_bytes": used.host.lazy_bytes,
            "repacked_bytes": used.host.repacked_bytes,
            "total_bytes": used.host.total_bytes,
            "available_bytes": used.host.available_bytes,
        },
        "pools": [
            {
                "name": pool.name,
                "total_bytes": pool.total_bytes,
                "available_bytes": pool.available_bytes,
                "used_bytes": pool.used_bytes,
                "margin_bytes": pool.margin_bytes,
                "growth_bytes": pool.growth_bytes,
            }
            for pool in used.pools
        ],
        "peak": {
            "devices": [device.peak_bytes for device in used.devices],
            "host": used.host.peak_bytes,
        },
        "resident_ratio": used.resident_ratio,
        "projector": images.use_json(used.projector) if used.projector else None,
        "draft": {
            "devices": [_buffers(part) for part in used.draft.devices],
            "host": _buffers(used.draft.host),
        }
        if used.draft
        else None,
    }


def rate(item: Rate) -> dict[str, float]:
    """A rate with its range."""
    return {"low": item.low, "expected": item.expected, "high": item.high}


def speed(item: SpeedEstimate) -> dict[str, Any]:
    """Rates in tokens per second, times in seconds."""
    return {
        "decode_tok_s": rate(item.decode_tok_s),
        "prefill_tok_s": rate(item.prefill_tok_s),
        "aggregate_tok_s": item.aggregate_tok_s,
        "ttft_s": item.ttft_s,
        "follow_up_ttft_s": item.follow_up_ttft_s,
        "request_s": item.request_s,
        "load_s": item.load_s,
        "bound_by": item.bound_by,
        "bound_share": item.bound_share,
        "moved_by": item.moved_by,
        "prefill_bound_by": item.prefill_bound_by,
        "parts": dict(item.parts),
        "prefill_parts": dict(item.prefill_parts),
        "load": load(item.load) if item.load else None,
        "assumptions": list(item.assumptions),
    }


def load(item: Load) -> dict[str, Any]:
    """What each of several users gets."""
    return {
        "users": item.users,
        "slots": item.slots,
        "ttft_s": item.ttft_s,
        "follow_up_ttft_s": item.follow_up_ttft_s,
        "burst_ttft_s": item.burst_ttft_s,
        "slot_wait_s": item.slot_wait_s,
        "request_s": item.request_s,
        "decode_tok_s": item.decode_tok_s,
        "aggregate_tok_s": item.aggregate_tok_s,
        "prompt_tok_s": item.prompt_tok_s,
        "requests_per_s": item.requests_per_s,
        "kept_ratio": item.kept_ratio,
    }


def launch(command: LaunchCommand | None) -> dict[str, Any] | None:
    """The command as words."""
    if command is None:
        return None
    return {
        "engine": command.engine,
        "build": command.build,
        "argv": list(command.argv),
        "env": dict(command.env),
        "files": [{"name": item.name, "text": item.text} for item in command.files],
        "further": [further(item) for item in command.further],
    }


def further(item: FurtherCommand) -> dict[str, Any]:
    """A command beside the one that starts the engine."""
    return {"what": item.what, "argv": list(item.argv), "env": dict(item.env)}


def unknown_model(machine: Machine, findings: Iterable[Finding]) -> dict[str, Any]:
    """What can be answered of a command whose model is not known: nothing but its arguments is judged."""
    return {
        "schema": SCHEMA,
        "model": None,
        "machine": machine_json(machine),
        "settings": None,
        "memory": None,
        "speed": None,
        "verdict": "invalid",
        "command": None,
        "findings": [finding(item) for item in findings],
        "provenance": {},
    }


def finding(item: Finding) -> dict[str, str]:
    """One finding."""
    return {"id": item.id, "severity": item.severity, "text": item.text, "fix": item.fix}


def rung(item: Rung) -> dict[str, Any]:
    """One step of the context ladder."""
    found = item.candidate
    return {
        "context": item.context,
        "verdict": found.footprint.verdict if found else "does-not-fit",
        "ubatch": found.settings.ubatch if found else None,
        "cpu_moe_layers": found.cpu_moe_layers if found else None,
        "decode_tok_s": found.speed.decode_tok_s.expected if found else None,
        "prefill_tok_s": found.speed.prefill_tok_s.expected if found else None,
        "request_s": found.speed.request_s if found else None,
        "reason": item.reason or None,
    }
