"""llama.cpp's buffers for one placement: weights, context and compute of every device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plan_llama.memory import compute, context, weights
from plan_llama.memory.probe import settled
from plan_llama.memory.scheduler import CUDA_KIND, BackendKind
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers, DeviceBytes, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What the engine asks of a device before it places anything."""

    free_bytes: int
    kind: BackendKind = CUDA_KIND
    # it has pinned system memory, where host weights go before any format of the CPU
    host_buffer: bool = True


def buffers(
    table: ModelTable, settings: Settings, devices: Sequence[DeviceMemory], cpu_isa: Sequence[str] = ()
) -> Buffers:
    """The buffers that llama.cpp b11434 reserves. Raises UsageError for settings that cannot be read."""
    made = _of_one_model(table, settings, devices, cpu_isa)
    if settings.draft is None or table.draft is None:
        return made
    # loaded after the model: layers are split by what is free then, if anything is; the context is the model's
    left = [
        replace(device, free_bytes=max(1, device.free_bytes - part.total_bytes))
        for device, part in zip(devices, made.devices, strict=True)
    ]
    own = replace(settings.draft, context=settings.context)
    return made.beside(_of_one_model(table.draft, own, left, cpu_isa))


def _of_one_model(
    table: ModelTable, settings: Settings, devices: Sequence[DeviceMemory], cpu_isa: Sequence[str]
) -> Buffers:
    used = settings.used_devices(len(devices))
    if used != tuple(range(len(devices))):
        return _on_some(table, settings, devices, used, cpu_isa)
    placement = weights.place(table, settings, [device.free_bytes for device in devices])
    batch = context.reserved_batch(settings, table.windows, all_outputs=context.encodes(table.spec))
    kinds = [device.kind for device in devices]
    batch = settled(table, settings, batch, placement, kinds)
    weight = weights.weight_bytes(table, placement, dict(enumerate(kinds)))
    repacked = weights.NOT_REPACKED
    if settings.repack and cpu_isa and not any(device.host_buffer for device in devices):
        repacked = weights.repack(table, placement, frozenset(cpu_isa))
        weight[HOST] += repacked.added_bytes
    cache = context.context_bytes(table, batch, placement, dict(enumerate(kinds)))
    work = compute.work_bytes(table, settings, batch, placement, kinds, repacked)
    if table.spec.architecture in compute.GROWING:
        work = work.growing(
            compute.work_bytes(table, settings, replace(batch, grown=True), placement, kinds, repacked)
        )
    if settings.draft_layers and table.blocks > table.layers:
        own_cache, own = _draft(table, settings, placement, kinds, repacked)
        cache = {device: size + own_cache[device] for device, size in cache.items()}
        later = compute.work_bytes(table, settings, replace(batch, hidden=True), placement, kinds, repacked)
        work = work.largest(later).beside(own)
    return Buffers(
        devices=tuple(
            DeviceBytes(
                weights_bytes=weight[i],
                context_bytes=cache[i],
                compute_bytes=work.buffers[i],
                # nothing runs on a card that has nothing; one with a compute buffer alone is offloaded to
                pool_bytes=work.pools[i] if weight[i] or cache[i] or work.buffers[i] else 0,
                fused_bytes=work.fused[i],
            )
            for i in range(len(devices))
        ),
        host=DeviceBytes(
            weights_bytes=weight[HOST],
            context_bytes=cache[HOST],
            compute_bytes=work.buffers[-1],
            pool_bytes=work.host_growth,
        ),
        repacked_bytes=repacked.inside_bytes,
    )


def _draft(
    table: ModelTable,
    settings: Settings,
    placement: weights.Placement,
    kinds: Sequence[BackendKind],
    repacked: weights.Repacked,
) -> tuple[dict[int, int], compute.Work]:
    """Cache and compute buffers of the second context, which runs the block for drafting and shares the weights.

    The first context's buffers may grow with the first long prompt: it reserves before it is told to keep the state
    of every token (llama_set_embeddings_nextn), and reserves again when that graph does not fit.
    Source: common_base_params_to_speculative and common_speculative_init_result (common/speculative.cpp), b11434: as
    the first, with cache types of its own, and one output per slot.
    """
    own = replace(
        settings,
        kv_type_k=settings.draft_kv_type_k,
        kv_type_v=settings.draft_kv_type_v,
        draft_layers=False,
    )
    # a plain cache, also where the model's own one gives every sequence its cells (DeepSeek-V4)
    batch = context.reserved_batch(own, replace(table.windows, own_streams=False))
    cache = context.draft_bytes(table, batch, placement, dict(enumerate(kinds)))
    return cache, compute.work_bytes(table, settings, batch, placement, kinds, repacked, draft=True)


def _on_some(
    table: ModelTable,
    settings: Settings,
    devices: Sequence[DeviceMemory],
    used: Sequence[int],
    cpu_isa: Sequence[str],
) -> Buffers:
    """The model has no other devices than those, in that order (llama_prepare_model_devices, src/llama.cpp, b11434):
    the first one takes what is offloaded from the host, and one alone runs no pipeline."""
    place_of = {index: place for place, index in enumerate(used)}
    shares = settings.tensor_split
    alone = replace(
        settings,
        devices=(),
        split_mode="layer" if settings.split_mode == "none" else settings.split_mode,
        main_gpu=place_of.get(settings.main_gpu, 0),
        tensor_split=tuple(shares[i] if i < len(shares) else 0.0 for i in used) if any(shares) else (),
        overrides=tuple(
            override._replace(device=place_of.get(override.device, HOST))
            for override in settings.overrides
            if override.device == HOST or override.device in place_of
        ),
    )
    made = _of_one_model(table, alone, [devices[index] for index in used], cpu_isa)
    rest = [DeviceBytes()] * len(devices)
    for index, place in place_of.items():
        rest[index] = made.devices[place]
    return replace(made, devices=tuple(rest))
