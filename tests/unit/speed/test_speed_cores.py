"""What the cores of a CPU do: the head of a prompt, interleaved types, attention over kinds of caches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from scripts import speed_cpu, speed_cuda, speed_report

from plan_llama.hardware.types import Cpu, Machine, Ram
from plan_llama.memory.types import HOST, Settings
from plan_llama.models.catalog_models import resolve
from plan_llama.speed.constants import shipped
from plan_llama.speed.estimate import estimate
from plan_llama.speed.traffic import prepare, traffic
from plan_llama.speed.types import CacheReads, Request, SpeedEstimate, Traffic
from plan_llama.units import GIB

RAM = Ram(total_bytes=64 * GIB, available_bytes=60 * GIB, bandwidth_bytes_per_s=50e9)
CPU = Cpu(physical_cores=8, logical_cores=8, isa=("avx2",))
MACHINE = Machine(name="8 cores", gpus=(), ram=RAM, cpu=CPU)
SETTINGS = Settings(context=8192, gpu_layers=0)


def weights(kind: str, *, head_share: float = 0.0, cache: bool = False) -> tuple[Traffic, ...]:
    """A gigabyte of one type on the host."""
    row = CacheReads(bytes_per_cell=100e3, flops_per_cell=4e5)
    flops = 2e9
    made = Traffic(device=HOST, dense_bytes={kind: 10**9}, dense_flops=flops, head_flops=head_share * flops)
    return (replace(made, cache=(row,)) if cache else made,)


def speed(
    parts: Sequence[Traffic], settings: Settings = SETTINGS, *, isa: Sequence[str] = ("avx2",), depth: int = 0
) -> SpeedEstimate:
    here = replace(MACHINE, cpu=replace(CPU, isa=tuple(isa)))
    return estimate(here, parts, settings, Request(prompt_tokens=512, output_tokens=16, depth=depth))


def test_only_the_last_token_of_a_prompt_goes_through_the_head() -> None:
    whole, half = speed(weights("q8_0")), speed(weights("q8_0", head_share=0.5))
    assert half.decode_tok_s == whole.decode_tok_s
    assert half.prefill_parts["CPU compute"] == pytest.approx(
        whole.prefill_parts["CPU compute"] / 2, rel=2e-3
    )


@pytest.mark.parametrize(
    ("model", "quant", "tensor"),
    [("llama-3.3-70b", "Q4_K_M", "output.weight"), ("llama-3.2-1b", "Q4_K_M", "token_embd.weight")],
)
def test_the_head_is_the_output_projection_or_the_tied_embedding(model: str, quant: str, tensor: str) -> None:
    spec = resolve(model, quant)
    (elements,) = (t.elements for t in spec.tensors if t.name == tensor)
    table, home = prepare(spec), [HOST] * spec.layers
    by_tensor = traffic(spec, [HOST] * len(spec.tensors), home, SETTINGS)
    assert [t.head_flops for t in by_tensor if t.head_flops] == [2.0 * elements]
    assert table.of_layers(home, home, HOST, SETTINGS) == by_tensor


def test_only_what_the_engine_interleaves_gains_by_it() -> None:
    plain = replace(SETTINGS, repack=False)
    # ggml_repack_get_optimal_repack_type, b11434: on AVX2 Q4_0 and not Q8_0, which needs ARM's dot products.
    assert (
        speed(weights("q4_0")).prefill_tok_s.expected > speed(weights("q4_0"), plain).prefill_tok_s.expected
    )
    assert speed(weights("q8_0")) == speed(weights("q8_0"), plain)
    assert speed(weights("q4_0"), isa=("neon",)) == speed(weights("q4_0"), plain, isa=("neon",))


def test_a_quantised_cache_is_slow_to_read_on_cores() -> None:
    """Measured, tests/data/cpu: flash attention has no tiles for it."""
    deep = weights("q4_K", cache=True)
    small = replace(SETTINGS, kv_type_k="q8_0", kv_type_v="q8_0")
    one = replace(SETTINGS, kv_type_k="q8_0")
    costs = [speed(deep, s, depth=4096).prefill_parts["CPU cache"] for s in (SETTINGS, one, small)]
    assert costs == sorted(costs)
    assert costs[2] > 2 * costs[0]
    # with nothing in the cache it does not matter
    shallow = weights("q4_K")
    assert speed(shallow, small) == speed(shallow)


def measured(depth: int) -> dict[tuple[str, str, bool], tuple[float, float]]:
    """Of the models with four layers after so many tokens: (model, kind, flash attention) to what is predicted and what
    was measured, both threads."""
    rows = (speed_cpu.DATA / "speed.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    found = {}
    for row, case in zip(map(json.loads, rows), speed_cpu.read(), strict=True):
        if row["model"].endswith("-4L") and row["depth"] == depth and "-t 2" in row["flags"]:
            said = speed_report.predict(case, shipped())[row["kind"] == "prefill"]
            found[row["model"], row["kind"], "-fa on" in row["flags"]] = said, row["tok_s"]
    return found


@pytest.mark.parametrize("depth", [0, 4096, 8192, 16384])
def test_what_flash_attention_costs_a_core_is_what_was_measured(depth: int) -> None:
    """tests/data/cpu: up to five times as slow with a token, and somewhat slower with a prompt."""
    rows, compared = measured(depth), 0
    for (model, kind, flash), (said, real) in rows.items():
        if flash and (model, kind, False) in rows:
            plain_said, plain_real = rows[model, kind, False]
            assert plain_said / said == pytest.approx(plain_real / real, rel=0.35), (model, kind)
            compared += 1
    assert compared >= 2


def test_more_threads_find_their_pages_again() -> None:
    """Measured: 4,096 tokens are 8 MiB of rows for each of two threads, and more than a core's addresses for one."""
    row = CacheReads(bytes_per_cell=4 * 4096, flops_per_cell=4 * 8192, heads=4 * 16, layers=4)
    deep = (replace(weights("q4_K")[0], cache=(row,)),)

    def attention(threads: int, depth: int) -> float:
        return speed(deep, replace(SETTINGS, threads=threads), depth=depth).parts["CPU cache"] * threads

    shallow = [attention(threads, 1024) for threads in (1, 2)]
    assert attention(1, 8192) / shallow[0] > 1.5 * attention(8, 8192) / attention(8, 1024)


def test_tiles_begin_where_eight_rows_chose_an_expert() -> None:
    """tests/data/cuda: Qwen3-30B's experts on 16 cores, 8 of 128 by each token. Row by row, each of 512 tokens would
    take as long as each of 64."""
    found = {}
    rows = (speed_cuda.DATA / "speed.jsonl").read_text(encoding="utf-8").splitlines()
    cases = {case.id: case for case in speed_cuda.read()}
    for number, row in enumerate(map(json.loads, rows)):
        if "-nopo 1" in row["flags"] and "qwen3" in row["model"] and row.get("tokens_spread"):
            said = speed_report.predict(cases[f"h200-{number}-{row['model']}"], shipped())[1]
            found[row["prompt"]] = said, row["tok_s"]
    assert {64, 512} <= found.keys()
    assert found[512][1] > 2.2 * found[64][1]
    for said, real in found.values():
        assert said == pytest.approx(real, rel=0.25)


def test_a_type_without_tiles_goes_row_by_row() -> None:
    """ggml_tiled_supported, b11434: K and IQ types on x86, unless they are interleaved."""
    plain = replace(SETTINGS, repack=False)

    def gain(kind: str, settings: Settings, isa: Sequence[str] = ("avx2",)) -> float:
        part = Traffic(
            device=HOST,
            expert_bytes={kind: 10**9},
            expert_used_ratio=1 / 16,
            expert_layers=1,
            expert_flops=2e8,
        )
        times = [
            estimate(
                replace(MACHINE, cpu=replace(CPU, isa=tuple(isa))),
                (part,),
                settings,
                Request(prompt_tokens=tokens, output_tokens=1),
            ).prefill_parts["CPU compute"]
            / tokens
            for tokens in (64, 512)
        ]
        return times[0] / times[1]

    assert gain("q6_K", plain) > 1.1
    assert gain("iq3_xxs", SETTINGS) > 1.1
    for kind, settings, isa in (
        ("q8_0", plain, ("avx2",)),
        ("q4_K", SETTINGS, ("avx2",)),  # interleaved there
        ("q6_K", plain, ("neon",)),
    ):
        assert gain(kind, settings, isa) < 1.0  # the first rows of each expert are no longer the most


def test_few_threads_read_no_more_than_was_measured_for_one_each() -> None:
    """A byte less per second and thread is a slower token, until all threads together have the memory's rate."""
    one = replace(SETTINGS, threads=1)
    rates = [10e9, 20e9, 50e9, None]
    speeds = []
    for rate in rates:
        measured = replace(RAM, thread_bytes_per_s=rate, sources={"bandwidth_bytes_per_s": "measured"})
        here = replace(MACHINE, ram=measured)
        speeds.append(estimate(here, weights("q8_0"), one, Request()).decode_tok_s.expected)
        eight = estimate(here, weights("q8_0"), SETTINGS, Request()).decode_tok_s.expected
        assert eight > speeds[-1]
    assert speeds[0] < speeds[1] < speeds[2] == speeds[3]


def test_reading_and_computing_overlap() -> None:
    """A token takes at least as long as the longer of the two, and less than both one after the other."""
    k = shipped()
    kernel = k.kernels["q8_0"]
    parts = speed(weights("q8_0")).parts
    read, compute = 1e9 / (50e9 * k.ram_peak), 1e9 * kernel.core_s_per_byte / 8**k.cores_exponent
    assert max(read, compute) < sum(parts.values()) < read + compute
    assert parts["RAM dense weights"] / parts["CPU dense weights"] == pytest.approx(
        (read / compute) ** k.overlap
    )
