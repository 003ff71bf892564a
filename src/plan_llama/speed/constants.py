"""The fitted constants of the speed model: `profiles/speed/constants.toml`, written by
scripts/fit_speed.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from plan_llama import catalog
from plan_llama.errors import ProfileError
from plan_llama.hardware.types import Cpu, Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """GPUs whose kernels reach the same share of the data sheet. The first family that matches a card is
    its own."""

    name: str
    vendors: tuple[str, ...]  # empty: any
    backends: tuple[str, ...]  # empty: any
    targets: tuple[str, ...]  # compute capability or gfx target; empty: any
    integrated: bool | None
    decode: float  # share of memory bandwidth with 16-bit weights
    prefill: float  # share of FP16 peak with 16-bit weights
    layer_s: float  # launches of one layer, per pass
    expert_layer_s: float  # and of its routed experts
    vector_columns: int  # what one more column takes in the kernels for vectors, against one of a matrix
    vector_most: int  # up to so many tokens the products of experts are those kernels'
    tile_columns: int  # columns of the largest tile in which the products of experts are made
    tile_by_rows: bool  # a tile's size follows the rows per expert, else all tokens of the batch

    def matches(self, gpu: Gpu, unified: bool) -> bool:
        """Whether the family describes this card."""
        return (
            (not self.vendors or gpu.vendor in self.vendors)
            and (not self.backends or gpu.backend in self.backends)
            and (not self.targets or gpu.compute_capability in self.targets or gpu.gfx_target in self.targets)
            and (self.integrated is None or self.integrated == (gpu.integrated or unified))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Tensor types whose kernels cost alike. `decode` and `prefill` multiply the family's share on a GPU."""

    decode: float
    prefill: float
    core_s_per_byte: float  # of one AVX2 core in decode, beside the memory read
    core_flops: float  # of one AVX2 core in prompt processing
    repacked_decode: float  # how much faster a core is where llama.cpp keeps the type interleaved
    repacked_prefill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Everything the model does not derive. Shares are of a peak; `*_s` seconds; rates as in the units
    page."""

    families: tuple[Family, ...]
    kernels: Mapping[str, Kernel]  # by ggml type name
    other_kernel: Kernel  # of types that no class names
    isa: tuple[tuple[str, float, float], ...]  # (flag, decode factor, prefill factor of a core), best first
    engine_core_decode: Mapping[str, float]
    engine_core_prefill: Mapping[str, float]
    repacked_core_decode: float  # ik_llama.cpp's layouts, which it has for every type
    repacked_core_prefill: float
    experts_decode: float
    experts_prefill: float
    experts_core_prefill: Mapping[str, float]  # engines that multiply experts as matrices: against plain ones
    expert_rows: float  # of others, row by row: a core's rate against that with plain ones
    few_columns: int  # a matrix kernel takes as long as if it had so many columns more
    crossing_s: float
    cache_read: float
    cache_read_blocks: float  # of that, with a quantised cache
    plain_read: float  # and without flash attention
    plain_layer_s: float  # launches of a layer's attention beside, without flash attention
    score_bytes: float  # traffic of the card's memory per score, without flash attention
    attention_decode: float
    attention_prefill: float
    select_layer_s: float  # of a layer with sparse attention, per pass
    select_cell_s: float  # and per cell whose score is sorted
    select_cell_bytes: float  # and per cell and token: traffic of the card's memory
    tiled_vnni: float  # tiles with 8-bit dot products against those without
    core_attention_flops: float  # of one AVX2 core, in prompts
    core_attention_decode: float  # and with one new token, against prompts
    core_attention_plain: float  # and without flash attention, against with it
    core_score_s: float  # of one AVX2 core with one new token, per cell and head beside its arithmetic
    core_plain_score_s: float  # without flash attention, where that is all
    core_page_s: float  # of one core that flash attention leads to another page of memory
    core_quantised_decode: float  # of a quantised cache, against one of floats
    core_quantised_prefill: float
    ram_peak: float
    ram_peak_two: float  # with two channels or one
    ram_measured: float
    overlap: float  # of reading and computing on the cores: 1 one after the other, more: the longer one counts most
    ram_experts: float  # routed experts, read here and there, against dense weights
    cores_exponent: float
    link_pinned: float
    link_pageable_bytes_per_s: float  # the driver copies pages of a file to a buffer of its own first
    pipeline: float  # exponent of the ideal gain of several cards on successive micro-batches
    tensor_split: float
    split_layer_s: float
    mapped_read: float
    mask_cell_s: float  # of one core: a cell of a micro-batch's own tokens in the mask of its attention
    link_bytes_per_s: Mapping[str, float]  # of one lane, by generation
    disk_bytes_per_s: Mapping[str, float]
    assumed: Mapping[str, float]
    widen: Mapping[str, float]
    spread_decode: Mapping[str, float]
    spread_prefill: Mapping[str, float]

    def family(self, gpu: Gpu, unified: bool) -> Family:
        """The family of a card; the last one in the profile matches everything."""
        return next((f for f in self.families if f.matches(gpu, unified)), self.families[-1])

    def isa_factors(self, cpu: Cpu) -> tuple[float, float]:
        """How much faster than an AVX2 core one of these is, in decode and in prompt processing."""
        return next(
            ((decode, prefill) for flag, decode, prefill in self.isa if flag in cpu.isa), self.isa[-1][1:]
        )


def parse(data: dict[str, Any], where: str = "speed constants") -> Constants:
    """Constants from a profile's dict. Raises ProfileError naming the place of what is missing or unknown."""
    table = catalog.Table(data, where)
    if table.take("schema", int) != 1:
        raise ProfileError(f"{where}: schema must be 1")
    table.get("fitted", dict)
    families = tuple(_family(t) for t in table.tables("family"))
    kernels: dict[str, Kernel] = {}
    named: dict[str, Kernel] = {}
    other: Kernel | None = None
    for t in table.tables("kernel"):
        types, last = t.strings("types"), t.get("other", bool)
        alike = t.get("gpu", str)  # the class before it that costs a GPU the same
        on_gpu = named.get(alike or "")
        kernel = named[t.take("name", str)] = Kernel(
            decode=on_gpu.decode if on_gpu else t.take("decode", float),
            prefill=on_gpu.prefill if on_gpu else t.take("prefill", float),
            core_s_per_byte=t.take("core_s_per_byte", float),
            core_flops=t.take("core_flops", float),
            repacked_decode=t.take("repacked_decode", float),
            repacked_prefill=t.take("repacked_prefill", float),
        )
        t.done()
        kernels.update(dict.fromkeys(types, kernel))
        other = kernel if last else other
    isa = tuple(_isa(t) for t in table.tables("isa"))
    if not families or not isa or other is None:
        raise ProfileError(f"{where}: needs a family, an isa and one kernel marked other")
    gpu, host, link = table.table("gpu"), table.table("host"), table.table("link")
    constants = Constants(
        families=families,
        kernels=kernels,
        other_kernel=other,
        isa=isa,
        engine_core_decode=_floats(table.table("engine_core_decode")),
        engine_core_prefill=_floats(table.table("engine_core_prefill")),
        repacked_core_decode=host.take("repacked_core_decode", float),
        repacked_core_prefill=host.take("repacked_core_prefill", float),
        experts_decode=gpu.take("experts_decode", float),
        experts_prefill=gpu.take("experts_prefill", float),
        experts_core_prefill=_floats(table.table("experts_core_prefill")),
        expert_rows=host.take("expert_rows", float),
        few_columns=gpu.take("few_columns", int),
        crossing_s=host.take("crossing_s", float),
        cache_read=gpu.take("cache_read", float),
        cache_read_blocks=gpu.take("cache_read_blocks", float),
        plain_read=gpu.take("plain_read", float),
        plain_layer_s=gpu.take("plain_layer_s", float),
        score_bytes=gpu.take("score_bytes", float),
        attention_decode=gpu.take("attention_decode", float),
        attention_prefill=gpu.take("attention_prefill", float),
        select_layer_s=gpu.take("select_layer_s", float),
        select_cell_s=gpu.take("select_cell_s", float),
        select_cell_bytes=gpu.take("select_cell_bytes", float),
        tiled_vnni=host.take("tiled_vnni", float),
        core_attention_flops=host.take("core_attention_flops", float),
        core_attention_decode=host.take("core_attention_decode", float),
        core_attention_plain=host.take("core_attention_plain", float),
        core_score_s=host.take("core_score_s", float),
        core_plain_score_s=host.take("core_plain_score_s", float),
        core_page_s=host.take("core_page_s", float),
        core_quantised_decode=host.take("core_quantised_decode", float),
        core_quantised_prefill=host.take("core_quantised_prefill", float),
        ram_peak=host.take("ram_peak", float),
        ram_peak_two=host.take("ram_peak_two", float),
        ram_measured=host.take("ram_measured", float),
        overlap=max(1.0, host.take("overlap", float)),
        ram_experts=host.take("ram_experts", float),
        cores_exponent=host.take("cores_exponent", float),
        link_pinned=link.take("pinned", float),
        link_pageable_bytes_per_s=link.take("pageable_bytes_per_s", float),
        pipeline=gpu.take("pipeline", float),
        tensor_split=gpu.take("tensor_split", float),
        split_layer_s=gpu.take("split_layer_s", float),
        mapped_read=host.take("mapped_read", float),
        mask_cell_s=host.take("mask_cell_s", float),
        link_bytes_per_s=_floats(table.table("link_bytes_per_s")),
        disk_bytes_per_s=_floats(table.table("disk_bytes_per_s")),
        assumed=_floats(table.table("assumed")),
        widen=_floats(table.table("widen")),
        spread_decode=_floats(table.table("spread_decode")),
        spread_prefill=_floats(table.table("spread_prefill")),
    )
    for part in (gpu, host, link, table):
        part.done()
    return constants


def _family(t: catalog.Table) -> Family:
    family = Family(
        name=t.take("name", str),
        vendors=t.strings("vendors"),
        backends=t.strings("backends"),
        targets=t.strings("targets"),
        integrated=t.get("integrated", bool),
        decode=t.take("decode", float),
        prefill=t.take("prefill", float),
        layer_s=t.take("layer_s", float),
        expert_layer_s=t.take("expert_layer_s", float),
        vector_columns=t.take("vector_columns", int),
        vector_most=t.take("vector_most", int),
        tile_columns=t.take("tile_columns", int),
        tile_by_rows=t.take("tile_by_rows", bool),
    )
    t.done()
    return family


def _isa(t: catalog.Table) -> tuple[str, float, float]:
    row = (t.take("flag", str), t.take("decode", float), t.take("prefill", float))
    t.done()
    return row


def _floats(t: catalog.Table) -> dict[str, float]:
    return {key: t.take(key, float) for key in sorted(t.keys())}


@cache
def shipped() -> Constants:
    """The constants that come with the program (a user's own `speed/constants.toml` in front of them)."""
    path = catalog.files("speed").get("constants")
    if path is None:
        raise ProfileError("the profile speed/constants.toml is missing", hint="reinstall plan-llama")
    return parse(catalog.load(path), str(path))
