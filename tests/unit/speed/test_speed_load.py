"""Several users of one server: against a replay of llama-server's loop, and in itself."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, replace
from math import log
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.speed_cases import DATA
from tests.slow import slow_but
from tests.unit.speed.test_speed_estimate import DESKTOP, offloaded

from plan_llama.hardware.overrides import HardwareChoice
from plan_llama.hardware.overrides import resolve as machine_of
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.catalog_models import resolve
from plan_llama.speed import passes
from plan_llama.speed.constants import shipped
from plan_llama.speed.estimate import estimate
from plan_llama.speed.load import serve
from plan_llama.speed.passes import Work
from plan_llama.speed.rates import Assumptions
from plan_llama.speed.traffic import prepare
from plan_llama.speed.types import Request
from plan_llama.units import GIB

SMALL = prepare(resolve("qwen3-8b", "Q4_K_M"))
RESIDENT = SMALL.of_layers([0] * 36, [0] * 36, 0, Settings(context=4096, gpu_layers=99))


def work_of(slots: int, *, on_host: bool = False, cache_ram_bytes: int = 64 * GIB, batch: int = 2048) -> Work:
    """An 8B model on the card, or GLM-5.1 with its experts in RAM, for so many slots."""
    made = Settings(
        context=32768 * slots, gpu_layers=99, parallel=slots, batch=batch, cache_ram_bytes=cache_ram_bytes
    )
    return passes.resolve(
        DESKTOP,
        offloaded(settings=made) if on_host else RESIDENT,
        made,
        shipped(),
        Assumptions(),
        engine="llama.cpp",
        resident_ratio=1.0,
        repacked=False,
    )


@dataclass(slots=True)
class Slot:
    """One slot of the replayed server."""

    arrived: float
    prompt: int  # tokens still to read
    output: int  # tokens still to write
    first: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the users of the replayed server saw, on average."""

    ttft_s: float
    request_s: float
    aggregate_tok_s: float


def replay(work: Work, request: Request, users: int, turns: int = 30) -> Seen:
    """llama-server's update_slots (tools/server/server-context.cpp, b11434) turn by turn, priced as the speed model
    prices a batch: a user sends again at once, answers vary in length, whoever finds no slot waits in line."""
    rng = random.Random(11434)  # noqa: S311 - the same lengths every time
    depth = request.depth + request.prompt_tokens + request.output_tokens / 2
    new = max(1, round(request.prompt_tokens * (1 - request.reuse_ratio)))
    now, line = 0.0, deque([0.0] * users)
    slots: list[Slot | None] = [None] * work.settings.parallel
    ttft: list[float] = []
    whole: list[float] = []
    written = 0
    wanted, warm = users * turns, users * turns // 5
    started = 0.0

    def length() -> int:
        return max(1, round(rng.expovariate(1 / request.output_tokens)))

    while len(whole) < wanted:
        if len(whole) == warm and not started:
            started, written = now, 0
        for index, slot in enumerate(slots):
            if slot is None and line:
                slots[index] = Slot(line.popleft(), new, length())
        writing = [slot for slot in slots if slot and not slot.prompt]
        read, left = [], work.settings.batch - len(writing)
        for slot in slots:
            if slot and slot.prompt and left > 0:
                count = min(left, slot.prompt)
                slot.prompt -= count
                left -= count
                read.append((slot, count))
        if read:
            total = sum(count for _, count in read)
            now += sum(passes.prompt(work, total, request.depth + request.prompt_tokens - total).values())
            if writing:
                step = passes.decode(work, depth, len(writing))
                now += sum(s for name, s in step.items() if name.endswith(" cache"))
        else:
            now += sum(passes.decode(work, depth, len(writing)).values())
        for slot in [*writing, *(slot for slot, _ in read if not slot.prompt)]:
            slot.output -= 1
            written += 1
            slot.first = now if slot.first is None else slot.first
        for index, slot in enumerate(slots):
            if slot and slot.output <= 0 and slot.first is not None:
                ttft.append(slot.first - slot.arrived)
                whole.append(now - slot.arrived)
                slots[index] = None
                line.append(now)
    return Seen(mean(ttft[warm:]), mean(whole[warm:]), written / (now - started))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(
    ("users", "slots"), slow_but([(1, 1), (4, 4), (10, 4), (12, 12), (10, 2)], (1, 1), (4, 4))
)
def test_the_figures_are_those_of_a_replayed_server(users: int, slots: int, on_host: bool) -> None:
    work = work_of(slots, on_host=on_host)
    request = Request(prompt_tokens=4096, output_tokens=300, reuse_ratio=0.5)
    made, seen = serve(work, request, users), replay(work, request, users)
    assert made.aggregate_tok_s == pytest.approx(seen.aggregate_tok_s, rel=0.06)
    assert made.request_s == pytest.approx(seen.request_s, rel=0.06)
    # The replayed users send when an answer ends, never into another's prompt; ours send at any moment.
    assert made.follow_up_ttft_s >= 0.99 * seen.ttft_s
    if slots == 1:
        assert made.follow_up_ttft_s == pytest.approx(seen.ttft_s, rel=0.02)


def test_the_last_of_all_at_once_waits_for_all_prompts() -> None:
    """Eight new prompts at once on eight slots, by the same replay's rules: the batches hold the prompts in turn."""
    work = work_of(8)
    request = Request(prompt_tokens=4096, output_tokens=300)
    prompt_s = sum(passes.prompt(work, 4096, 0).values())
    burst = serve(work, request, 8).burst_ttft_s
    assert 8 * prompt_s < burst < 1.1 * 8 * prompt_s
    assert serve(work, request, 1).burst_ttft_s == pytest.approx(serve(work, request, 1).ttft_s)


def test_one_user_has_the_figures_of_one_request() -> None:
    request = Request(prompt_tokens=4096, output_tokens=300, reuse_ratio=0.5)
    made = Settings(context=32768, gpu_layers=99, cache_ram_bytes=GIB)
    alone = estimate(DESKTOP, RESIDENT, made, request)
    served = estimate(DESKTOP, RESIDENT, made, replace(request, users=1)).load
    assert alone.load is None
    assert served is not None
    assert served.slot_wait_s == 0
    assert served.ttft_s == pytest.approx(alone.ttft_s)
    assert served.follow_up_ttft_s == pytest.approx(alone.follow_up_ttft_s)
    assert served.decode_tok_s == pytest.approx(alone.decode_tok_s.expected)


@given(st.integers(1, 64), st.integers(1, 16), st.integers(16, 20000), st.integers(1, 2000), st.floats(0, 1))
@settings(max_examples=40)
def test_flow_is_conserved(users: int, slots: int, prompt: int, output: int, reuse: float) -> None:
    load = serve(
        work_of(slots), Request(prompt_tokens=prompt, output_tokens=output, reuse_ratio=reuse), users
    )
    assert load.requests_per_s * load.request_s == pytest.approx(users)  # Little's law
    assert load.aggregate_tok_s == pytest.approx(load.requests_per_s * output)
    assert (load.slot_wait_s == 0) == (users <= slots)
    assert load.slot_wait_s < load.follow_up_ttft_s <= load.ttft_s * (1 + 1e-9)
    assert load.follow_up_ttft_s <= load.request_s * 1.1 + 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.booleans())
@settings(max_examples=40)
def test_more_users_wait_no_less(users: int, more: int, slots: int, on_host: bool) -> None:
    work, request = work_of(slots, on_host=on_host), Request(prompt_tokens=4096, output_tokens=300)
    few, many = serve(work, request, users), serve(work, request, users + more)
    assert many.ttft_s >= few.ttft_s * (1 - 1e-9)
    assert many.request_s >= few.request_s * (1 - 1e-9)
    assert many.burst_ttft_s >= few.burst_ttft_s


def test_users_beyond_the_slots_need_the_prompt_cache() -> None:
    request = Request(prompt_tokens=8192, output_tokens=300, reuse_ratio=0.9)
    full, small, none = (
        serve(work_of(2, cache_ram_bytes=size), request, 8) for size in (64 * GIB, 4 * GIB, 0)
    )
    assert full.kept_ratio == 1
    assert none.kept_ratio == 2 / 8
    # 8,492 tokens of 36 layers of 8 heads of 128 for K and V in 16 bits are 1.17 GiB: three of them in 4 GiB
    assert small.kept_ratio == (2 + 3) / 8
    assert full.request_s < small.request_s < none.request_s


def test_thirty_two_streams_are_a_batch_that_is_streamed() -> None:
    """From GGML_OP_OFFLOAD_MIN_BATCH rows on the experts in RAM are copied to the card for every step."""
    work = work_of(32, on_host=True)
    below, above = passes.decode(work, 4096, 31), passes.decode(work, 4096, 32)
    assert "RAM experts" in below
    assert "RAM experts" not in above
    assert above["PCIe copy of host weights"] > 0
    assert above["GPU0 dense weights"] == below["GPU0 dense weights"]


BATCHED = [json.loads(line) for line in (DATA / "batched.jsonl").read_text("utf-8").splitlines()]


def gains(row: dict[str, Any]) -> list[float]:
    """Of each published run of a model with several streams: predicted over measured gain against one stream."""
    table = ModelTable(resolve(row["model"], row["quant"]))
    behind = table.windows
    windows = [behind.cells if il in behind.layers else None for il in range(table.layers)]
    made = Settings(context=270336, gpu_layers=999, ubatch=2048, parallel=32)
    on_gpu = [0] * table.layers
    layers = prepare(table.spec, windows=windows if behind.cells else None)
    choice = HardwareChoice(gpu=(row["gpu"],), ram="192GiB", unified=True)
    work = passes.resolve(
        machine_of(choice),
        layers.of_layers(on_gpu, on_gpu, 0, made),
        made,
        shipped(),
        Assumptions(),
        engine="llama.cpp",
        resident_ratio=1.0,
        repacked=False,
    )
    one = {prompt: speed for prompt, streams, speed in row["prompt_streams_decode"] if streams == 1}
    found = []
    for prompt, streams, speed in row["prompt_streams_decode"]:
        if streams > 1:
            alone, together = (sum(passes.decode(work, prompt + 16, n).values()) for n in (1, streams))
            found.append(alone / together * streams / (speed / one[prompt]))
    return found


def test_what_several_streams_gain_is_as_published() -> None:
    """llama-batched-bench on a GB10 and an M2 Ultra (benches/ of llama.cpp b11434), no constant fitted to them."""
    errors = {(row["file"], row["gpu"]): [log(g) for g in gains(row)] for row in BATCHED}
    everything = [error for found in errors.values() for error in found]
    assert len(everything) == 195
    assert median(map(abs, everything)) <= 0.15
    assert abs(median(everything)) <= 0.06
    near = sum(abs(error) <= log(1.5) for error in everything) / len(everything)
    assert near >= 0.85
