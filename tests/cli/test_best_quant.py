"""`--quant best`, the choices beside a plan, and what is said of them."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli

LLAMA = ("--model", "llama-3.1-8b", "--gpu", "8GiB", "--ram", "32GiB")


def test_the_best_quant_is_worth_its_time(cli: Cli) -> None:
    plan = cli(*LLAMA, "--quant", "best")
    assert plan.code == 0
    assert "is the best of" in plan.flat
    assert "one step down" in plan.flat
    assert "as published for LLaMA 3 8B, not for this model" in plan.flat


def test_best_needs_something_to_choose_from(cli: Cli) -> None:
    refused = cli("--model", "ollama:nothing", "--quant", "best", "--gpu", "8GiB")
    assert refused.code == 2
    assert "leaves no quant open" in refused.err


@pytest.mark.slow
def test_other_choices_name_the_engines_own(cli: Cli) -> None:
    asked = ("--model", "qwen3-30b-a3b", "--quant", "Q4_K_M", "--gpu", "12GiB", "--ram", "64GiB")
    found = cli(*asked, "--prompt-tokens", "8000", "--json").json["alternatives"]
    what = [item["what"] for item in found]
    assert "llama.cpp's own --fit at this context" in what
    assert any(item.startswith("one more ") for item in what)
    theirs = next(item["effect"] for item in found if "--fit" in item["what"])
    assert "times as long" in theirs
    assert "gains most by" in theirs


def test_a_smaller_context_that_leaves_nothing_to_the_cpu_is_named(cli: Cli) -> None:
    plan = cli("--model", "mistral-7b", "--quant", "Q4_K_M", "--gpu", "8GiB", "--ram", "32GiB")
    assert "tokens of context instead of 32K nothing is left to the CPU" in plan.flat


@pytest.mark.slow
def test_a_context_that_does_not_fit_says_what_is_missing(cli: Cli) -> None:
    ladder = cli("--model", "kimi-k2.5", "--gpu", "8GiB", "--ram", "16GiB", "--json").json["ladder"]
    assert all(row["reason"] for row in ladder if row["verdict"] == "does-not-fit")


def test_a_name_that_two_cards_have_is_told(cli: Cli) -> None:
    text = cli("--model", "llama-3.1-8b", "--gpu", "H100 80GB*8", "--ram", "256GiB").flat
    assert "is read as NVIDIA H100 80GB HBM3; NVIDIA H100 PCIe is called so, too" in text


@pytest.mark.slow
def test_a_quant_and_a_context_that_leave_nothing_to_the_cpu_are_named(cli: Cli) -> None:
    plan = cli("--model", "mistral-7b", "--gpu", "8GiB", "--ram", "32GiB", "--cpu-cores", "8")
    assert "Q4_K_M (4.4 GB) with 16K tokens of context would be all on the GPU" in plan.flat
    assert "--quant Q4_K_M --ctx 16384" in plan.flat
    named = ("--quant", "Q4_K_M", "--ctx", "16384")
    there = cli("--model", "mistral-7b", *named, "--gpu", "8GiB", "--ram", "32GiB", "--json").json
    assert there["verdict"] == "fits"
    assert there["settings"]["layers_on_gpu"] == there["model"]["layers"]
    assert there["settings"]["cpu_ffn_layers"] == 0
