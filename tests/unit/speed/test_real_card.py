"""The shipped constants against an H200, to which some are fitted, and against an H100, which no constant has seen."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import log
from statistics import median
from typing import Any

import pytest
from scripts import speed_cuda, speed_report
from scripts.speed_cases import Case
from scripts.speed_cuda import H100, H200, Measured
from tests.slow import slow_but

from plan_llama.speed import passes
from plan_llama.speed.constants import shipped

CLEAR = 1.2  # predictions that differ by more are held to their order
TIE = 1.07  # two runs of one command differ by as much


@cache
def cases(on: Measured = H200) -> tuple[tuple[Case, float, float], ...]:
    """Every run of a card that can be compared: (case, predicted, measured), tokens per second."""
    found = []
    for case in speed_cuda.read(on):
        decode, prefill = speed_report.predict(case, shipped())
        found.append(
            (case, decode, case.decode_tok_s)
            if case.decode_tok_s
            else (case, prefill, case.prefill_tok_s or 0.0)
        )
    return tuple(found)


@pytest.mark.slow
def test_what_is_predicted_clearly_faster_is_faster() -> None:
    # micro-batches, threads, offloaded or not, mapped or pinned, flash attention or not, types of the cache
    alike: dict[Any, list[tuple[Case, float, float]]] = defaultdict(list)
    for row in cases():
        case = row[0]
        alike[case.group, case.decode_tok_s is None, case.prompt_tokens, case.depth // 4096].append(row)
    wrong, pairs = [], 0
    for rows in alike.values():
        for (one, said_one, real_one), (two, said_two, real_two) in combinations(rows, 2):
            if max(said_one, said_two) < CLEAR * min(said_one, said_two):
                continue
            pairs += 1
            tied = max(real_one, real_two) < TIE * min(real_one, real_two)
            if not tied and (said_one > said_two) != (real_one > real_two):
                wrong.append((one.id, said_one, real_one, two.id, said_two, real_two))
    assert pairs > 40
    assert not wrong


@pytest.mark.parametrize("kind", slow_but(["offload", "gpu_moe", "gpu"], "offload"))
def test_runs_lie_in_the_stated_range(kind: str) -> None:
    constants, inside = shipped(), []
    for case, said, real in cases():
        if speed_report.size_class(case) == kind:
            spread = constants.spread_decode if case.decode_tok_s else constants.spread_prefill
            inside.append(said / spread[kind] <= real <= said * spread[kind])
    assert sum(inside) >= 0.8 * len(inside) > 0


@pytest.mark.slow
def test_pinned_experts_make_the_printed_choice_ten_times_as_fast_as_fit_at_prompts() -> None:
    # tests/data/cuda/choices.jsonl: 12 GiB of the card; --fit's experts stay pages of the file
    rows = (speed_cuda.DATA / "choices.jsonl").read_text(encoding="utf-8").splitlines()
    real = {row["chosen_by"]: row["requests"][1] for row in map(json.loads, rows)}
    assert {name: row["prompt"] for name, row in real.items()} == {"plan-llama": 8000, "--fit": 8000}
    ratio = real["plan-llama"]["prefill_tok_s"] / real["--fit"]["prefill_tok_s"]
    on_host = next(
        case
        for case, _, _ in cases()
        if case.prompt_tokens == 2048 and case.settings.ubatch == 2048 and case.settings.load_mode == "none"
        if speed_report.size_class(case) == "offload" and "qwen3" in case.id
    )
    fitted = replace(on_host, settings=replace(on_host.settings, ubatch=512, load_mode="mmap"))
    said, said_fit = (speed_report.predict(case, shipped())[1] for case in (on_host, fitted))
    assert said / said_fit == pytest.approx(ratio, rel=0.35)


def test_a_card_that_no_constant_has_seen() -> None:
    decode = [log(said / real) for case, said, real in cases(H100) if case.decode_tok_s]
    prompts = [log(said / real) for case, said, real in cases(H100) if case.prefill_tok_s]
    assert (len(decode), len(prompts)) == (24, 20)
    assert median(map(abs, decode)) <= log(1.15)
    assert median(map(abs, prompts)) <= log(1.1)
    assert max(map(abs, prompts)) <= log(1.3)


@pytest.mark.parametrize(
    "model",
    [
        "qwen3-30b-a3b-q4_k_m",
        "gpt-oss-20b-mxfp4",
        "glm-4.5-air-q4_k_m-8L",
        "gpt-oss-120b-f16-8L",
        "ernie-4.5-21b-a3b-q4_k_m",
        "mixtral-8x7b-q4_k_m-12L",
    ],
)
def test_experts_take_whole_tiles_of_a_micro_batch(model: str) -> None:
    # from 128 to 512 tokens the tiles of 128 columns are filled, which costs little; from 64 to 128 they grow
    took = {
        case.settings.ubatch: (case.settings.ubatch / said, case.settings.ubatch / real)
        for case, said, real in cases()
        if case.prompt_tokens == 4096 and case.group == f"h200-{model}" and case.depth == 0
        if speed_report.size_class(case) == "gpu_moe"
    }
    assert set(took) >= {64, 128, 256, 512, 1024, 2048, 4096}
    for which in (0, 1):  # as predicted, as measured
        assert 1.05 < took[512][which] / took[128][which] < 1.75
        assert 1.3 < took[128][which] / took[64][which] < 2


def streams(model: str, flags: str) -> list[tuple[int, float, float]]:
    """llama-batched-bench on the H100: how many streams, tokens per second of all predicted, and measured."""
    found = []
    for line in (H100.folder / "batched.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["model"] == model and flags in row["flags"]:
            case = speed_cuda.case_of(model, {**row, "prompt": 0, "depth": 0, "tok_s": 1.0}, H100)
            work, _ = speed_report.resolve(case, shipped())
            step = passes.decode(work, row["prompt"] + row["output"] / 2, row["streams"])
            found.append((row["streams"], row["streams"] / sum(step.values()), row["decode_tok_s"]))
    return found


@pytest.mark.parametrize(
    ("model", "flags", "most"),
    [
        ("gpt-oss-20b-mxfp4", "-ncmoe 24", 1.25),
        ("llama-3.1-8b-q4_k_m", "-ngl 99", 1.3),
        ("llama-3.1-8b-q4_k_m", "-ngl 16", 1.6),  # weights of the host with 4 streams
        ("qwen3-30b-a3b-q4_k_m", "-ngl 99", 1.4),  # 64 streams over 128 experts
    ],
)
def test_several_streams_on_an_h100(model: str, flags: str, most: float) -> None:
    runs = streams(model, flags)
    assert runs[0][0] == 1
    assert len(runs) >= 3
    for count, said, real in runs:
        assert abs(log(said / real)) <= log(most), count


def test_from_32_streams_on_the_hosts_experts_are_copied_to_the_card() -> None:
    runs = {count: (said, real) for count, said, real in streams("gpt-oss-20b-mxfp4", "-ncmoe 24")}
    for which in (0, 1):  # as predicted, as measured
        assert runs[32][which] > 2.5 * runs[16][which]
