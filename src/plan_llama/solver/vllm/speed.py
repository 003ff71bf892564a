"""How fast a start of vLLM is, by the speed model of llama.cpp's kernels: each rank's share of the bytes at its card's
rates, and the exchange after every layer. vLLM's own kernels are not modelled, which the estimate says and widens for.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from plan_llama.hardware.types import Machine
from plan_llama.memory.types import Settings
from plan_llama.memory.vllm.attention import Backend, architecture_of
from plan_llama.memory.vllm.kv import stage_bounds
from plan_llama.memory.windows import windows
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec
from plan_llama.solver.vllm.rules import Setup
from plan_llama.speed.constants import shipped
from plan_llama.speed.estimate import estimate
from plan_llama.speed.rates import Assumptions, link_rate
from plan_llama.speed.traffic import LayerTable, prepare
from plan_llama.speed.types import Rate, Request, SpeedEstimate, Traffic

# The types of llama.cpp whose kernels read as many bytes per weight.
_KERNELS = {
    "fp8-block": "q8_0",
    "fp8-channel": "q8_0",
    "fp8-tensor": "q8_0",
    "int8": "q8_0",
    "nvfp4": "mxfp4",
    "mxfp4": "mxfp4",
    "int4": "q4_0",
    "awq": "q4_0",
    "gptq": "q4_0",
}
_HOP_S = 50e-6  # one pipeline stage to the next over a network, per token (assumed)


def speed(setup: Setup, machine: Machine, backend: Backend, request: Request) -> SpeedEstimate:
    """The estimate for one conversation of the request's streams, which data parallel replicas share."""
    spec, ranks = setup.checkpoint.spec, setup.start.ranks
    bounds = stage_bounds(spec.layers, ranks.pipeline)
    stage_of = [
        next(s for s, (low, high) in enumerate(bounds) if low <= il < high) for il in range(spec.layers)
    ]
    settings = _settings(setup, backend)
    whole = _table(setup.checkpoint).of_layers(stage_of, stage_of, ranks.pipeline - 1, settings)
    gpus = (machine.gpus[0],) * ranks.pipeline
    per_replica = replace(request, streams=max(1, -(-request.streams // ranks.data)))
    found = estimate(
        replace(machine, gpus=gpus),
        [_share(setup, item) for item in whole],
        settings,
        per_replica,
        engine="vllm",
    )
    exchange_s = shipped().split_layer_s * spec.layers if ranks.tensor > 1 else 0.0
    hops_s = _HOP_S * (ranks.pipeline - 1) if setup.nodes > 1 else 0.0
    passes = -(-request.prompt_tokens // settings.ubatch)
    return _slower(found, request, exchange_s, hops_s, _host_s(setup, machine, settings), passes, ranks.data)


def _host_s(setup: Setup, machine: Machine, settings: Settings) -> float:
    """Seconds in which a GPU reads the weights that stay in the host's memory, in every pass."""
    if not setup.start.offload_bytes:
        return 0.0
    rate = link_rate(machine, 0, settings, shipped(), Assumptions())
    return setup.start.offload_bytes / rate


def _slower(
    found: SpeedEstimate,
    request: Request,
    exchange_s: float,
    hops_s: float,
    host_s: float,
    passes: int,
    replicas: int,
) -> SpeedEstimate:
    """With what ranks exchange for every token, and what comes from the host.

    All replicas together write `aggregate_tok_s`.
    """
    added = exchange_s + hops_s + host_s
    prompt_s = request.prompt_tokens / found.prefill_tok_s.expected
    slower = prompt_s / (prompt_s + passes * host_s)
    prefill = found.prefill_tok_s
    token_s = 1 / found.decode_tok_s.expected + added
    ratio = 1 / token_s / found.decode_tok_s.expected
    parts = {
        **found.parts,
        "exchange between ranks": exchange_s,
        "hops between nodes": hops_s,
        "PCIe: weights of the host": host_s,
    }
    said = found.assumptions
    if added:
        said = (*said, "exchange between ranks assumed: 0.1 ms per layer, as over PCIe")
    rate = found.decode_tok_s
    return replace(
        found,
        decode_tok_s=Rate(low=rate.low * ratio, expected=rate.expected * ratio, high=rate.high * ratio),
        aggregate_tok_s=found.aggregate_tok_s * ratio * replicas,
        prefill_tok_s=Rate(
            low=prefill.low * slower, expected=prefill.expected * slower, high=prefill.high * slower
        ),
        ttft_s=found.ttft_s + added + passes * host_s,
        follow_up_ttft_s=found.follow_up_ttft_s + added + host_s,
        request_s=found.request_s + request.output_tokens * added + passes * host_s,
        bound_by="PCIe link" if host_s > token_s / 2 else found.bound_by,
        parts={name: seconds for name, seconds in parts.items() if seconds},
        assumptions=said,
    )


@lru_cache(maxsize=8)
def _table(checkpoint: Checkpoint) -> LayerTable:
    """What each layer reads and computes."""
    spec = _typed(checkpoint)
    sliding = windows(spec)
    return prepare(
        spec, windows=[sliding.cells if il in sliding.layers else None for il in range(spec.layers)]
    )


def _typed(checkpoint: Checkpoint) -> ModelSpec:
    """The checkpoint with the types whose kernels are charged for its formats."""
    spec, quantisation = checkpoint.spec, checkpoint.quantisation
    kind = by_name(_KERNELS.get(quantisation.scheme, "bf16"))
    return replace(
        spec,
        tensors=tuple(
            replace(tensor, type=kind) if quantisation.applies_to(tensor.name) else tensor
            for tensor in spec.tensors
            if tensor.name.startswith(("token_embd", "output")) or _runs(tensor.name, spec.layers)
        ),
    )


def _runs(name: str, layers: int) -> bool:
    parts = name.split(".")
    return parts[0] != "blk" or int(parts[1]) < layers


def _share(setup: Setup, whole: Traffic) -> Traffic:
    """One rank's part of its stage."""
    ranks, spec = setup.start.ranks, setup.checkpoint.spec
    tensor, over = ranks.tensor, ranks.tensor * ranks.data
    heads_kv = spec.int_param("attention.head_count_kv", 1)
    latent = architecture_of(spec).attention != "heads"
    cut = ranks.context if latent else min(tensor, max(1, heads_kv)) * ranks.context
    return replace(
        whole,
        dense_bytes={name: size // tensor for name, size in whole.dense_bytes.items()},
        expert_bytes={name: size // over for name, size in whole.expert_bytes.items()},
        dense_flops=whole.dense_flops / tensor,
        expert_flops=whole.expert_flops / over,
        cache=tuple(
            replace(
                item, bytes_per_cell=item.bytes_per_cell / cut, flops_per_cell=item.flops_per_cell / tensor
            )
            for item in whole.cache
        ),
    )


def _settings(setup: Setup, backend: Backend) -> Settings:
    """The start in the terms that the speed model takes."""
    start = setup.start
    eight = backend.value_bytes == 1.0 or backend.kv_dtype.startswith(("fp8", "nvfp4"))
    return Settings(
        context=start.max_model_len,
        batch=start.max_num_batched_tokens,
        ubatch=start.max_num_batched_tokens,
        kv_type_k="q8_0" if eight else "f16",
        kv_type_v="q8_0" if eight else "f16",
        gpu_layers=setup.checkpoint.spec.layers + 1,
        load_mode="none",
    )
