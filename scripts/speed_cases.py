"""The published runs of tests/data/throughput as inputs of the speed model.

A row names a model, a quantisation, a machine and a placement in words; shapes.toml there has the shapes
and the platforms. A row is left out, with its reason, where one of them is unknown or the run is of another
kind.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from plan_llama.hardware.gpu_table import lookup
from plan_llama.hardware.types import Cpu, Gpu, Machine, Ram, Source
from plan_llama.memory.types import HOST, Settings, SplitMode
from plan_llama.speed.traffic import cache_bytes
from plan_llama.speed.types import CacheReads, Engine, Traffic
from plan_llama.units import GIB

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "throughput"

_UNLIKE = (
    ("nearly full", "the machine was out of memory"),
    ("on a 16 GB RAM host", "the machine was out of memory"),
    ("-ser ", "fewer experts than the model's"),
    ("paged by the Windows driver", "the card's memory was overcommitted"),
    ("numa distribute over two sockets", "spread over two sockets on purpose"),
)
_ISA = {
    "amx": ("avx2", "avx512", "avx512_vnni", "amx"),
    "avx512_vnni": ("avx2", "avx512", "avx512_vnni"),
    "avx512": ("avx2", "avx512"),
    "avx2": ("avx2",),
    "neon": ("neon", "dotprod", "i8mm"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measured run. `decode_tok_s` and `prefill_tok_s` are what was measured, None where it was not."""

    id: str
    group: str
    data_class: str
    machine: Machine
    traffic: tuple[Traffic, ...]
    settings: Settings
    engine: Engine
    repacked: bool
    depth: int
    prompt_tokens: int
    decode_tok_s: float | None
    prefill_tok_s: float | None
    active_bytes: float  # weights that a token reads, wherever they are
    runs: tuple[float, ...] = ()  # what was measured each time, where that is known
    # the build multiplies many rows tile by tile on x86 (github.com/ggml-org/llama.cpp/pull/27851)
    tiles: bool = True


class Cases(NamedTuple):
    """What can be compared, and why the other rows cannot."""

    cases: tuple[Case, ...]
    left_out: tuple[tuple[str, str], ...]


class _LeftOutError(Exception):
    """A row that cannot be compared; the reason is the message."""


def read(data: Path = DATA, name: str = "calibration.jsonl") -> Cases:
    """Every row of a file of published runs as a case, or with the reason why it is none."""
    shapes = tomllib.loads((data / "shapes.toml").read_text(encoding="utf-8"))
    models = {name: model for model in shapes["model"] for name in model["match"]}
    quants = {name: quant for quant in shapes["quant"] for name in quant["match"]}
    cases, left_out = [], []
    for line in (data / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        try:
            cases.append(_case(row, models, quants, shapes["host"]))
        except _LeftOutError as reason:
            left_out.append((row["id"], str(reason)))
    return Cases(tuple(cases), tuple(left_out))


def _case(
    row: dict[str, Any], models: dict[str, Any], quants: dict[str, Any], hosts: list[dict[str, Any]]
) -> Case:
    engine = row["engine"].lower()
    if "vllm" in engine or "sglang" in engine or "fork" in engine:
        raise _LeftOutError(f"engine: {row['engine']}")
    if row.get("spec_decode"):
        raise _LeftOutError("speculative decoding")
    for words, reason in _UNLIKE:
        if words in row.get("notes", ""):
            raise _LeftOutError(reason)
    shape = models.get(row["model"])
    if shape is None:
        raise _LeftOutError(f"shape not known: {row['model']}")
    name = row.get("quant") or "ollama default"
    if name.endswith("default"):
        name = "MXFP4" if row["model"].startswith("gpt-oss") else "Q4_K_M"
    quant = quants.get(name)
    if quant is None:
        raise _LeftOutError(f"quantisation not known: {name}")
    if row["model"].startswith("gpt-oss") and not quant.get("dense_as_stated"):
        quant = quants["MXFP4"]  # its experts are MXFP4 in every file
    size = row.get("file_size_gib", 0) * GIB or row.get("file_size_gb", 0) * 1e9
    size = size or shape["parameters"] * 1e9 * quant["bits"] / 8
    machine = _machine(row, hosts, size)
    settings = _settings(row)
    traffic = _traffic(row, shape, quant, size, machine, settings)
    share = traffic[0].expert_used_ratio
    return Case(
        id=row["id"],
        group=row["group"],
        data_class=row["class"],
        machine=machine,
        traffic=traffic,
        settings=settings,
        engine="ik_llama.cpp" if engine.startswith("ik") else "llama.cpp",
        repacked=_repacked(row),
        depth=row.get("depth", 0),
        prompt_tokens=int(row.get("pp_tokens") or 512),
        decode_tok_s=row.get("tg_tok_s"),
        # Short prompts measure latency (the data's README), and time to first token holds the server's own.
        prefill_tok_s=row.get("pp_tok_s") if _compares_prompts(row) else None,
        active_bytes=sum(sum(t.dense_bytes.values()) + share * sum(t.expert_bytes.values()) for t in traffic),
        tiles=False,  # all are of earlier builds
    )


def _compares_prompts(row: dict[str, Any]) -> bool:
    notes = row.get("notes", "")
    return (
        int(row.get("pp_tokens") or 512) >= 256
        and "time to first token" not in notes
        and "ignore pp" not in notes
    )


def _repacked(row: dict[str, Any]) -> bool:
    """Whether the CPU's weights are in its own layout: asked for (-rtr), in the file, or llama.cpp without
    a GPU."""
    notes, quant = row.get("notes", ""), row.get("quant") or ""
    if "experts copied to the GPU" in notes:
        return False
    asked = ("-rtr" in notes and "-rtr 0" not in notes) or "run-time repacked" in notes
    plain_cpu = row["class"] == "cpu_only" and not row["engine"].startswith("ik")
    return asked or plain_cpu or quant.endswith(("_R4", "_R8"))


def _settings(row: dict[str, Any]) -> Settings:
    placement, notes = row.get("placement", {}), row.get("notes", "")
    mode: SplitMode = "tensor" if placement.get("split_mode") in ("graph", "tensor") else "layer"
    return Settings(
        context=row.get("n_ctx") or 4096,
        batch=row.get("n_batch") or max(2048, row.get("n_ubatch") or 0),
        ubatch=row.get("n_ubatch") or 512,
        kv_type_k=row.get("kv_type_k") or "f16",
        kv_type_v=row.get("kv_type_v") or row.get("kv_type_k") or "f16",
        gpu_layers=0 if row["class"] == "cpu_only" else 999,
        split_mode=mode,
        threads=row.get("threads"),
        threads_batch=row.get("threads_batch"),
        repack=_repacked(row),
        # -rtr rewrites weights in memory, so nothing stays mapped
        load_mode="none" if "no-mmap" in notes or _repacked(row) else "mmap",
    )


def _machine(row: dict[str, Any], hosts: list[dict[str, Any]], size: float) -> Machine:
    unified = row["class"] == "unified"
    cards = [] if row["class"] == "cpu_only" else row.get("gpus", [])
    gpus = tuple(gpu for card in cards for gpu in [_gpu(card, row, size)] * card.get("count", 1))
    cpu, ram = row.get("cpu") or "", row.get("ram", {})
    host = next((h for h in hosts if h["match"].lower() in cpu.lower()), None)
    on_host = row["class"] in ("cpu_only", "moe_offload", "dense_partial")
    if host is None and on_host and not (ram.get("channels") and ram.get("mt_s")):
        raise _LeftOutError(f"host not known: {cpu or 'not stated'}")
    host = host or {"cores": 8, "isa": "avx2", "channels": 2, "mt_s": 5600, "type": "DDR5"}
    measured = ram.get("read_bw_gb_s_measured") or ram.get("read_bw_gib_s_measured", 0) * 1.0737
    bandwidth = (measured or ram.get("read_bw_gb_s_stated", 0)) * 1e9 or None
    sources: dict[str, Source] = {"bandwidth_bytes_per_s": "measured"} if measured else {}
    sockets = 2 if host["channels"] > 12 or row.get("cpu_sockets") == 2 else 1
    total = int(ram.get("total_gib", 64) * GIB)
    return Machine(
        name=row["id"],
        unified=unified,
        gpus=gpus,
        ram=Ram(
            total_bytes=total,
            available_bytes=total,
            type=ram.get("type") or host["type"],
            speed_mt_s=ram.get("mt_s") or host["mt_s"],
            channels=ram.get("channels") or host["channels"],
            bandwidth_bytes_per_s=bandwidth,
            sources=sources,
        ),
        cpu=Cpu(
            name=cpu or None,
            physical_cores=host["cores"],
            logical_cores=2 * host["cores"],
            sockets=sockets,
            isa=_ISA[host["isa"]],
        ),
    )


def _gpu(card: dict[str, Any], row: dict[str, Any], size: float) -> Gpu:
    memory = card.get("vram_gib")
    plain = re.sub(r"\s*\(.*\)", "", card["name"])
    facts = lookup(card["name"]) or lookup(plain)
    if memory and not (facts and facts.unified):
        facts = lookup(plain, memory_bytes=int(memory * GIB)) or facts
    if facts is None:
        raise _LeftOutError(f"card not known: {card['name']}")
    if row["class"] == "gpu1_dense" and facts.memory_bytes and facts.memory_bytes < 1.1 * size:
        facts = lookup(plain, memory_bytes=int(1.25 * size)) or facts  # sold with two sizes of memory
    backend = (row.get("backend") or facts.backend).lower()
    return Gpu(
        name=facts.name,
        vendor=facts.vendor,
        backend="vulkan" if "vulkan" in backend else facts.backend,
        integrated=facts.unified,
        total_bytes=facts.memory_bytes or int((memory or 64) * GIB),
        free_bytes=facts.memory_bytes or int((memory or 64) * GIB),
        compute_capability=facts.compute_capability,
        gfx_target=facts.gfx_target,
        bandwidth_bytes_per_s=facts.bandwidth_bytes_per_s,
        fp16_flops_per_s=facts.fp16_flops_per_s,
        pcie_gen=facts.pcie_gen,
        pcie_width=facts.pcie_width,
    )


def _host_expert_layers(row: dict[str, Any], shape: dict[str, Any]) -> int:
    """How many layers' routed experts the row's words keep on the host."""
    moe, placement = shape.get("expert_layers", 0), row.get("placement", {})
    if row["class"] == "cpu_only":
        return int(moe)
    if row["class"] in ("unified", "gpu1_moe", "gpu1_dense", "multi_gpu"):
        return 0
    words = f"{placement.get('override_tensor', '')} {placement.get('summary', '')}"
    if (count := placement.get("n_cpu_moe")) is not None:
        return int(min(moe, max(0, count - (shape["layers"] - moe))))
    if span := re.search(r"(\d+)-(\d+)=CPU", words):
        return int(min(moe, int(span[2]) - int(span[1]) + 1))
    if span := re.search(r"layers (\d+)-(\d+) on CPU", words):
        return int(span[2]) - int(span[1]) + 1
    on_gpu = [int(b) - int(a) + 1 for a, b in re.findall(r"blk\.(\d+)-(\d+) ffn=CUDA", words)]
    if "details not stated" in words or "not shown" in words:
        raise _LeftOutError("placement not stated")
    return int(moe) - sum(on_gpu)


def _traffic(
    row: dict[str, Any],
    shape: dict[str, Any],
    quant: dict[str, Any],
    size: float,
    machine: Machine,
    settings: Settings,
) -> tuple[Traffic, ...]:
    """Weights split as the row says; dense layers evenly over the cards, as the cards of these rows are."""
    experts_total = shape.get("experts_total", 0.0) * 1e9
    dense = (shape["parameters"] - shape["embedding"]) * 1e9 - experts_total
    if experts_total:
        bits = quant["dense_bits"]
        if not quant.get("dense_as_stated"):
            bits = min(bits, 1.6 * size * 8 / (shape["parameters"] * 1e9) + 3)
        file_dense = dense * bits / 8
        expert_bytes = size - file_dense - shape["embedding"] * 1e9 * quant["dense_bits"] / 8 * 0.8
    else:
        file_dense, expert_bytes = size * dense / (shape["parameters"] * 1e9), 0.0
    dense_type = "q8_0" if quant["dense_bits"] > 8 and experts_total else quant["type"]
    dense_type = "q6_K" if experts_total and quant["dense_bits"] < 8 else dense_type
    if quant["type"] == "f16" and row.get("quant") == "BF16":
        quant, dense_type = {**quant, "type": "bf16"}, "bf16"
    ratio = shape["used"] / shape["experts"] if experts_total else 1.0
    moe = shape.get("expert_layers", 0)
    on_host = _host_expert_layers(row, shape) / moe if moe else 0.0
    cards = len(machine.gpus)
    if row["class"] == "dense_partial":
        raise _LeftOutError("number of layers on the card not stated")
    homes: list[tuple[int, float, float]] = [(i, 1 / cards, (1 - on_host) / cards) for i in range(cards)]
    if not cards:
        homes = [(HOST, 1.0, 1.0)]
    elif on_host:
        homes.insert(0, (HOST, 0.0, on_host))
    # of the last layer, what only the last token of a prompt goes through
    at_end = HOST if not cards or on_host == 1.0 else cards - 1
    late_experts = 1 / moe if moe else 0.0
    late_dense = 0.0 if moe else _late_share(shape, dense)
    found = []
    for device, share, expert_share in homes:
        expert_layers = round(moe * expert_share)
        away = device == HOST and cards > 0
        parts = [(share, expert_share, expert_layers, False)]
        if device == at_end:
            parts = [
                (share - late_dense, expert_share - late_experts, expert_layers - bool(moe), False),
                (late_dense, late_experts, int(bool(moe)), True),
            ]
        for of_dense, of_experts, layers, is_late in parts:
            found.append(
                Traffic(
                    device=device,
                    dense_bytes={dense_type: round(file_dense * of_dense)} if of_dense else {},
                    expert_bytes={quant["type"]: round(expert_bytes * of_experts)}
                    if of_experts * moe
                    else {},
                    expert_used_ratio=ratio,
                    layers=0 if is_late else round(shape["layers"] * share),
                    expert_layers=layers,
                    crossings=layers if away else 0,
                    late=is_late,
                    dense_flops=2 * dense * of_dense,
                    head_flops=0.0 if is_late else 2e9 * shape.get("head", shape["embedding"]) * share,
                    expert_flops=2 * experts_total * ratio * of_experts,
                    cache=() if is_late else _cache(shape, share, settings),
                )
            )
    return tuple(found)


def _late_share(shape: dict[str, Any], dense: float) -> float:
    """The feed-forward part of a dense model's last layer, of all weights that a token reads: a layer without its
    attention, which has a matrix of queries and one behind it, as wide as the layer, and those of keys and values."""
    queries = shape["score"] / 2
    attention = queries * (2 * queries + shape["k_row"] + shape["v_row"])
    layer = (dense - 1e9 * shape.get("head", shape["embedding"])) / shape["layers"]
    return float(max(0.0, layer - attention) / dense)


def _cache(shape: dict[str, Any], share: float, settings: Settings) -> tuple[CacheReads, ...]:
    if not share:
        return ()
    size = shape["k_row"] * cache_bytes(settings.kv_type_k) + shape["v_row"] * cache_bytes(settings.kv_type_v)
    sliding = shape.get("window_layers", 0)
    full = shape.get("cache_layers", shape["layers"]) - sliding
    reads = [
        CacheReads(
            bytes_per_cell=size * layers * share,
            flops_per_cell=2.0 * shape["score"] * layers * share,
            most_cells=most,
        )
        for layers, most in ((full, None), (sliding, shape.get("window")))
        if layers
    ]
    return tuple(reads)
