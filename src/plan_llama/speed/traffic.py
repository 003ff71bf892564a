"""From a model's tensors and a placement to what each device reads per token.

`prepare` walks the tensors once; `LayerTable.of_tensors` and `LayerTable.of_layers` are cheap per
candidate. Rules: routed experts are the `*_exps` tensors (llama.cpp src/llama-arch.cpp, b11434), embeddings
are looked up row by row, and the cache holds what src/llama-kv-cache.cpp allocates: K and V rows, K only
with MLA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from plan_llama.errors import ModelError, UsageError
from plan_llama.memory.experts import refused
from plan_llama.memory.last_layer import for_outputs
from plan_llama.memory.types import HOST, Settings
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec
from plan_llama.speed.attention import Attention, attention_of, window_of
from plan_llama.speed.types import CacheReads, Traffic

# What llama.cpp takes for -ctk and -ctv (common/arg.cpp kv_cache_types, b11434).
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

_BLOCK = re.compile(r"blk\.(\d+)\.")
_LOOKED_UP = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes by type and flops per token of one layer's dense weights or of its routed experts; `head_flops` of them
    are the output head's."""

    bytes_by_type: dict[str, int]
    flops: float
    head_flops: float = 0.0


@dataclass(slots=True)
class _Cells:
    """What a cached token costs, summed over layers."""

    size: float = 0.0
    flops: float = 0.0
    selecting: int = 0
    heads: int = 0
    layers: int = 0


class _Tally:
    """A Traffic in the making."""

    __slots__ = (
        "cache",
        "crossings",
        "dense",
        "dense_flops",
        "expert_flops",
        "expert_layers",
        "experts",
        "head_flops",
        "layers",
    )

    def __init__(self) -> None:
        self.dense: dict[str, int] = {}
        self.experts: dict[str, int] = {}
        self.dense_flops = 0.0
        self.head_flops = 0.0
        self.expert_flops = 0.0
        self.layers = 0
        self.expert_layers = 0
        self.crossings = 0
        self.cache: dict[int | None, _Cells] = {}

    def add(self, name: str, size: int, flops: float, *, routed: bool) -> None:
        """A tensor; routed experts apart."""
        part = _Part({name: size}, flops)
        if routed:
            self.add_experts(part)
        else:
            self.add_dense(part)

    def add_dense(self, part: _Part) -> None:
        for name, size in part.bytes_by_type.items():
            self.dense[name] = self.dense.get(name, 0) + size
        self.dense_flops += part.flops
        self.head_flops += part.head_flops

    def add_experts(self, part: _Part) -> None:
        for name, size in part.bytes_by_type.items():
            self.experts[name] = self.experts.get(name, 0) + size
        self.expert_flops += part.flops

    def add_attention(self, attention: Attention, k_bytes: float, v_bytes: float) -> None:
        self.layers += 1
        size = attention.k_elements * k_bytes + attention.v_elements * v_bytes
        self._cells(attention.most_cells, size, attention.flops, heads=attention.heads)
        if attention.index_elements:
            # The index keys are kept in the K type and read for every cell, whatever the attention selects.
            self._cells(None, attention.index_elements * k_bytes, attention.index_flops, selecting=1)

    def _cells(
        self, most: int | None, size: float, flops: float, *, selecting: int = 0, heads: int = 0
    ) -> None:
        if size or flops:
            row = self.cache.setdefault(most, _Cells())
            row.size += size
            row.flops += flops
            row.selecting += selecting
            row.heads += heads
            row.layers += heads > 0

    def traffic(
        self, device: int, used_ratio: float, carried: int, *, refused: bool = False, late: bool = False
    ) -> Traffic:
        return Traffic(
            device=device,
            carried_bytes=carried,
            refused=refused,
            late=late,
            dense_bytes=self.dense,
            expert_bytes=self.experts,
            expert_used_ratio=used_ratio,
            layers=self.layers,
            expert_layers=self.expert_layers,
            crossings=self.crossings,
            dense_flops=self.dense_flops,
            head_flops=self.head_flops,
            expert_flops=self.expert_flops,
            cache=tuple(
                CacheReads(
                    bytes_per_cell=row.size,
                    flops_per_cell=row.flops,
                    most_cells=most,
                    selecting=row.selecting,
                    heads=row.heads,
                    layers=row.layers,
                )
                for most, row in self.cache.items()
            ),
        )


@dataclass(frozen=True)
class LayerTable:
    """A model's tensors summed by layer, and each tensor's own share for placements that split a layer."""

    used_ratio: float
    dense: tuple[_Part, ...]  # by layer, but what is late
    experts: tuple[_Part, ...]  # by layer, over all experts; flops of the used ones; but what is late
    late_dense: _Part  # of the last layer, what a prompt goes through with its last token only
    late_experts: _Part
    output: _Part  # the output projection and everything outside the blocks
    attention: tuple[Attention, ...]  # by layer
    tensors: tuple[
        tuple[int, int, str, int, float], ...
    ]  # (index, layer or -1, type, bytes, flops) of what is read
    routed: frozenset[int]  # indices of routed-expert tensors
    refused: frozenset[int]  # and of these, what CUDA and HIP refuse to multiply with
    late: frozenset[int]  # indices of what is late
    carried_bytes: int  # a token's state, to weights on another device and back
    of_attention: frozenset[int]  # indices of what stands before and after attention
    tied: _Part | None  # the embedding where it is the output projection as well
    head: int | None  # index of the output projection where it is a tensor of its own

    def of_layers(
        self,
        dense_device: Sequence[int],
        expert_device: Sequence[int],
        output_device: int,
        settings: Settings,
    ) -> tuple[Traffic, ...]:
        """The traffic of a placement by whole layers: `dense_device[il]` runs layer il's attention and
        holds its cache and dense weights, `expert_device[il]` holds its routed experts. Costs microseconds
        per candidate."""
        tallies: dict[int, _Tally] = {}
        lates: dict[int, _Tally] = {}
        for il, part in enumerate(self.dense):
            _add_layer(tallies, part, self.experts[il], dense_device[il], expert_device[il])
        if self.late:
            _add_layer(lates, self.late_dense, self.late_experts, dense_device[-1], expert_device[-1])
        self._finish(tallies, dense_device, output_device, settings, with_output=True)
        return self._result(tallies) + self._result(lates, late=True)

    def of_tensors(
        self,
        device_of: Sequence[int | None],
        layer_device: Sequence[int],
        settings: Settings,
        *,
        output_device: int | None = None,
    ) -> tuple[Traffic, ...]:
        """The traffic of any placement: `device_of[i]` holds tensor i (None is not loaded)."""
        tallies: dict[int, _Tally] = {}
        lates: dict[int, _Tally] = {}
        drafts: dict[int, _Tally] = {}
        by_cpu: dict[int, _Tally] = {}
        expert_homes: set[tuple[int, int, bool]] = set()  # the last: is it late?
        # layers with weights elsewhere: of their attention, late?
        apart: set[tuple[int, int, bool, bool]] = set()
        for index, layer, name, size, flops in self.tensors:
            device = device_of[index]
            if device is None:
                continue
            if layer >= len(self.dense):
                _at(drafts, device).add(name, size, flops, routed=index in self.routed)
                continue
            if index in self.refused:
                _at(by_cpu, device).add(name, size, flops, routed=True)
                by_cpu[device].expert_layers += 1
                if layer_device[layer] != device:
                    apart.add((layer, device, False, False))
                continue
            late = index in self.late
            own = lates if late else tallies
            tally = own.get(device) or _at(own, device)
            if index in self.routed:
                tally.experts[name] = tally.experts.get(name, 0) + size
                tally.expert_flops += flops
                expert_homes.add((layer, device, late))
            else:
                tally.dense[name] = tally.dense.get(name, 0) + size
                tally.dense_flops += flops
                if index == self.head:
                    tally.head_flops += flops
                if 0 <= layer < len(layer_device) and layer_device[layer] != device:
                    apart.add((layer, device, index in self.of_attention, late))
        for layer, device, late in expert_homes:
            (lates if late else tallies)[device].expert_layers += 1
            if layer < len(layer_device) and layer_device[layer] != device:
                apart.add((layer, device, False, late))
        # to the feed-forward part and back; to what is before and after attention
        for _, device, _, late in apart:
            _at(lates if late else tallies, device).crossings += 1
        last = layer_device[-1] if layer_device else HOST
        self._finish(
            tallies,
            layer_device,
            last if output_device is None else output_device,
            settings,
            with_output=False,
        )
        if drafts:
            head = last if output_device is None else output_device
            _at(drafts, head).add_dense(self.tied or self.output)
        return (
            *self._result(tallies),
            *self._result(lates, late=True),
            *self._result(by_cpu, refused=True),
            *(replace(item, draft=True) for item in self._result(drafts)),
        )

    def of_part(
        self,
        indices: Iterable[int],
        device: int,
        *,
        layer: int | None = None,
        settings: Settings | None = None,
        crossings: int = 0,
        late: bool = False,
    ) -> Traffic:
        """Some tensors of one layer on one device, all of them late or none; with the layer's number its attention and
        cache, too."""
        tally, routed, by_cpu = _Tally(), False, False
        for index in indices:
            if (row := self.rows.get(index)) is None:
                continue
            _, _, name, size, flops = row
            by_cpu = by_cpu or index in self.refused
            routed = routed or index in self.routed
            tally.add(name, size, flops, routed=index in self.routed)
        tally.expert_layers, tally.crossings = int(routed), crossings
        if layer is not None and settings is not None and layer < len(self.attention):
            k_bytes, v_bytes = cache_bytes(settings.kv_type_k), cache_bytes(settings.kv_type_v)
            if settings.kv_offload or device == HOST:
                tally.add_attention(self.attention[layer], k_bytes, v_bytes)
        return tally.traffic(device, self.used_ratio, self.carried_bytes, refused=by_cpu, late=late)

    def of_output(self, device: int) -> Traffic:
        """The output projection and everything outside the blocks, on one device."""
        tally = _Tally()
        tally.add_dense(self.output)
        if self.tied:
            tally.add_dense(self.tied)
        return tally.traffic(device, self.used_ratio, self.carried_bytes)

    @cached_property
    def attention_kinds(self) -> tuple[int, ...]:
        """A number per layer, equal where attention costs the same."""
        known: dict[Attention, int] = {}
        return tuple(known.setdefault(attention, len(known)) for attention in self.attention)

    @cached_property
    def rows(self) -> dict[int, tuple[int, int, str, int, float]]:
        """The rows of `tensors` by index."""
        return {row[0]: row for row in self.tensors}

    def _finish(
        self,
        tallies: dict[int, _Tally],
        layer_device: Sequence[int],
        output_device: int,
        settings: Settings,
        *,
        with_output: bool,
    ) -> None:
        if with_output:
            _at(tallies, output_device).add_dense(self.output)
        if self.tied:
            _at(tallies, output_device).add_dense(self.tied)
        k_bytes, v_bytes = cache_bytes(settings.kv_type_k), cache_bytes(settings.kv_type_v)
        for il in range(min(len(self.attention), len(layer_device))):
            home = layer_device[il] if settings.kv_offload else HOST
            _at(tallies, home).add_attention(self.attention[il], k_bytes, v_bytes)

    def _result(
        self, tallies: dict[int, _Tally], *, refused: bool = False, late: bool = False
    ) -> tuple[Traffic, ...]:
        return tuple(
            tallies[device].traffic(device, self.used_ratio, self.carried_bytes, refused=refused, late=late)
            for device in sorted(tallies)
        )


def _add_layer(tallies: dict[int, _Tally], dense: _Part, experts: _Part, home: int, expert_home: int) -> None:
    """One layer: its dense weights, and on the same device or another its routed experts."""
    _at(tallies, home).add_dense(dense)
    if experts.bytes_by_type:
        there = _at(tallies, expert_home)
        there.add_experts(experts)
        there.expert_layers += 1
        there.crossings += expert_home != home


def _at(tallies: dict[int, _Tally], device: int) -> _Tally:
    if device not in tallies:
        tallies[device] = _Tally()
    return tallies[device]


def cache_bytes(name: str) -> float:
    """Bytes per element of a cache type."""
    if name not in _CACHE_TYPES:
        known = ", ".join(_CACHE_TYPES)
        raise UsageError(f"cache type {name!r} is not one that llama.cpp takes", hint=f"one of {known}")
    kind = by_name(name)
    return kind.block_bytes / kind.block_elements


def prepare(spec: ModelSpec, *, windows: Sequence[int | None] | None = None) -> LayerTable:
    """Sum a model's tensors by layer, once per model.

    `windows[il]` is the most cells that layer il's attention reads (None: all); without it the header's own
    sliding-window pattern is used where it states one, else every layer is charged in full. Raises
    ModelError where the header lacks what attention needs.
    """
    layers = spec.layers
    used, total = spec.int_param("expert_used_count", 0), spec.int_param("expert_count", 0)
    ratio = used / total if used and total else 1.0
    # of each layer, and at the end what of the last one is late
    dense: list[dict[str, int]] = [{} for _ in range(layers + 1)]
    experts: list[dict[str, int]] = [{} for _ in range(layers + 1)]
    dense_flops, expert_flops = [0.0] * (layers + 1), [0.0] * (layers + 1)
    output: dict[str, int] = {}
    output_flops = 0.0
    rows: list[tuple[int, int, str, int, float]] = []
    routed: set[int] = set()
    by_cpu = refused(spec)
    # what the CPU multiplies is copied for every micro-batch, whether a row wants it or not
    late = for_outputs(spec) - by_cpu
    kinds: list[set[str]] = [set() for _ in range(layers)]
    head, head_flops, embedding = None, 0.0, None
    for index, tensor in enumerate(spec.tensors):
        name, kind, size = tensor.name, tensor.type.name, tensor.nbytes
        if name.startswith(_LOOKED_UP):
            embedding = tensor if name == "token_embd.weight" else embedding
            continue
        match = _BLOCK.match(name)
        layer = int(match[1]) if match else -1
        flops = 2.0 * tensor.elements if len(tensor.shape) > 1 else 0.0
        if "_exps." in name or "_chexps." in name:  # LLM_FFN_EXPS_REGEX, common/common.h
            flops *= ratio
            routed.add(index)
        if name == "output.weight":
            head, head_flops = index, flops
        rows.append((index, layer, kind, size, flops))
        if not 0 <= layer < layers:
            if layer < 0:
                output[kind] = output.get(kind, 0) + size
                output_flops += flops
            continue  # a draft block: only placements by tensor can load it
        kinds[layer].add(name[match.end() :] if match else name)
        place = layers if index in late else layer
        if index in routed:
            experts[place][kind] = experts[place].get(kind, 0) + size
            expert_flops[place] += flops
        else:
            dense[place][kind] = dense[place].get(kind, 0) + size
            dense_flops[place] += flops
    tied = None
    if head is None and embedding is not None:
        flops = 2.0 * embedding.elements
        tied = _Part({embedding.type.name: embedding.nbytes}, flops, flops)
    *dense_parts, late_dense = (_Part(a, b) for a, b in zip(dense, dense_flops, strict=True))
    *expert_parts, late_experts = (_Part(a, b) for a, b in zip(experts, expert_flops, strict=True))
    return LayerTable(
        used_ratio=ratio,
        dense=tuple(dense_parts),
        experts=tuple(expert_parts),
        late_dense=late_dense,
        late_experts=late_experts,
        output=_Part(output, output_flops, head_flops),
        attention=tuple(
            attention_of(
                spec,
                il,
                kinds[il],
                windows[il] if windows is not None and il < len(windows) else window_of(spec, il),
            )
            for il in range(layers)
        ),
        tensors=tuple(rows),
        routed=frozenset(routed),
        refused=by_cpu,
        late=late,
        carried_bytes=2 * 4 * spec.int_param("embedding_length", 0),  # f32
        of_attention=frozenset(row[0] for row in rows if ".attn_" in spec.tensors[row[0]].name),
        tied=tied,
        head=head,
    )


def traffic(
    spec: ModelSpec,
    device_of: Sequence[int | None],
    layer_device: Sequence[int],
    settings: Settings,
    *,
    windows: Sequence[int | None] | None = None,
    output_device: int | None = None,
) -> tuple[Traffic, ...]:
    """The traffic of one placement by tensor; `prepare` once instead where many are compared.

    `output_device` runs the output projection where it is tied to the embedding (default: that of the last
    layer). Raises ModelError where `device_of` does not match the model's tensors.
    """
    if len(device_of) != len(spec.tensors):
        raise ModelError(f"{spec.name}: {len(device_of)} placed tensors, the file has {len(spec.tensors)}")
    return prepare(spec, windows=windows).of_tensors(
        device_of, layer_device, settings, output_device=output_device
    )
