"""Plans for llama.cpp over several machines: every host's command, private addresses, the network in the numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Cli

MODEL = ("--model", "llama-3.3-70b", "--quant", "Q8_0", "--ram", "64GiB")
TWO = ("--nodes", "2", "--node-address", "10.0.0.1", "--node-address", "10.0.0.2")


def plan(cli: Cli, *words: str, model: tuple[str, ...] = MODEL) -> dict[str, Any]:
    ended = cli(*model, *words, "--json")
    assert ended.err == ""
    found: dict[str, Any] = json.loads(ended.out)
    return found


@pytest.mark.parametrize(
    ("model", "gpu", "devices"),
    [
        pytest.param(MODEL, "RTX 3090*2", 4, marks=pytest.mark.slow),
        (("--model", "qwen3-4b", "--quant", "Q8_0", "--ram", "64GiB"), "4GiB", 2),
    ],
)
def test_every_host_has_its_command(cli: Cli, model: tuple[str, ...], gpu: str, devices: int) -> None:
    found = plan(cli, "--gpu", gpu, *TWO, model=model)
    assert found["verdict"] == "fits"
    argv = found["command"]["argv"]
    # in front of what names its devices: the parser reads from left to right
    assert argv[3:5] == ["--rpc", "10.0.0.2:50052"]
    assert [item["argv"] for item in found["command"]["further"]] == [
        ["ggml-rpc-server", "-H", "10.0.0.2", "-p", "50052", "-c"]
    ]
    assert len(found["memory"]["devices"]) == devices
    assert "rpc-no-authentication" in [
        item["id"] for item in found["findings"] if item["severity"] == "warning"
    ]


@pytest.mark.slow
def test_the_network_makes_it_slower_than_one_machine(cli: Cli) -> None:
    apart, together = (
        plan(cli, "--gpu", "RTX 3090*2", *TWO)["speed"],
        plan(cli, "--gpu", "RTX 3090*4")["speed"],
    )
    assert apart["parts"]["network"] > 0
    assert apart["decode_tok_s"]["expected"] < together["decode_tok_s"]["expected"]
    assert apart["prefill_tok_s"]["expected"] < together["prefill_tok_s"]["expected"]


@pytest.mark.parametrize("address", ["0.0.0.0", "8.8.8.8", "127.0.0.1", "gpu-box", "::1"])  # noqa: S104
def test_only_private_addresses_are_bound(cli: Cli, address: str) -> None:
    words = ("--nodes", "2", "--node-address", "10.0.0.1", "--node-address", address)
    ended = cli(*MODEL, "--gpu", "RTX 3090*2", *words)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert address in ended.err


@pytest.mark.slow
def test_placeholders_stand_for_addresses_that_were_not_given(cli: Cli) -> None:
    found = plan(cli, "--gpu", "RTX 3090*2", "--nodes", "3")
    argv = found["command"]["argv"]
    assert argv[argv.index("--rpc") + 1] == "NODE1_IP:50052,NODE2_IP:50052"
    assert "node-address-missing" in [item["id"] for item in found["findings"]]


def test_what_cannot_be_lent_is_refused(cli: Cli) -> None:
    assert cli(*MODEL, "--no-gpu", "--nodes", "2").code == 2
    assert cli(*MODEL, "--hardware", "mac-studio-m3-ultra-512", "--nodes", "2").code == 2
    assert cli(*MODEL, "--gpu", "24GiB", "--nodes", "2", "--engine", "ollama").code == 2
    assert cli("check", "--nodes", "2", "--", "llama-server", "-m", "x.gguf").code == 2
