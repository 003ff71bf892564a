"""Measuring this machine: what is shown, kept, and used by its plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.errors import InputError
from plan_llama.hardware import bandwidth, cuda_copy, diskread
from plan_llama.hardware.calibration import Bandwidth
from plan_llama.hardware.types import Cpu, ProbeNote, Ram
from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures in place of measurements; there is no CUDA driver."""

    def memory(_cpu: Cpu, _ram: Ram) -> Bandwidth:
        return Bandwidth(
            bytes_per_s=40e9, threads=4, date="2026-11-26", by_threads=((1, 12e9), (2, 39e9), (4, 40e9))
        )

    def disk(place: Path) -> diskread.Read:
        return diskread.Read(bytes_per_s=2.5e9, size_bytes=1 << 30, method="O_DIRECT", what=str(place))

    monkeypatch.setattr(bandwidth, "by_threads", memory)
    monkeypatch.setattr(diskread, "measure", disk)
    monkeypatch.setattr(cuda_copy, "load", lambda: ProbeNote(probe="pcie", reason="no driver"))


def test_what_is_measured_is_shown_kept_and_used(cli: Cli, home: Path) -> None:
    ended = cli("calibrate", "--path", str(home))
    assert ended.code == 0
    assert "40.0 GB/s read" in ended.out
    assert "2 threads reach it" in ended.flat
    assert "2.5 GB/s read of" in ended.flat
    assert "plans on this machine use it" in ended.flat
    shown = cli("calibrate", "--show", "--json").json
    assert shown["memory"]["threads"] == 4
    assert shown["disk"][0]["read_bytes_per_s"] == 2.5e9
    assert shown["plan_llama"]
    assert Path(shown["file"]).is_file()
    assert shown["took_s"] is None
    plan = cli("--model", "qwen3-0.6b", "--quant", "Q8_0", "--json").json
    assert plan["machine"]["ram"]["bandwidth_bytes_per_s"] == 40e9
    assert plan["provenance"]["machine.ram.bandwidth"] == "measured"
    said = next(item for item in plan["findings"] if item["id"] == "calibration")
    assert "memory 40.0 GB/s" in said["text"]
    like = cli("--model", "qwen3-0.6b", "--quant", "Q8_0", "--ram", "64GiB", "--json").json
    assert like["machine"]["disk"]["read_bytes_per_s"] is None
    assert "calibration" not in {item["id"] for item in like["findings"]}
    elsewhere = cli("--model", "qwen3-0.6b", "--quant", "Q8_0", "--hardware", "desktop-64", "--json").json
    assert "calibration" not in {item["id"] for item in elsewhere["findings"]}


def test_nothing_measured_yet_is_said(cli: Cli) -> None:
    ended = cli("calibrate", "--show")
    assert ended.code == 2
    assert "was not measured yet" in ended.err
    assert cli("calibrate", "--path", "/not/there").code == 2


def test_what_fails_is_named_and_the_rest_kept(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(place: Path) -> diskread.Read:
        raise InputError(f"{place}: too little free disk", hint="--path names a model's file")

    monkeypatch.setattr(diskread, "measure", full)
    answer = cli("calibrate", "--json").json
    assert [item["what"] for item in answer["notes"]][-1] == "disk"
    assert answer["memory"]["bytes_per_s"] == 40e9
    assert answer["disk"] == []
