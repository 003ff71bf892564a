"""Defaults of older builds, as their own --help and common/common.h state them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.units import MIB
from tests.unit.engine_fixtures import llama, machine

DATA = Path(__file__).parents[1] / "data" / "engines"


def reading(line: str, build: int) -> CommandReading:
    parsed = parse(shlex.split(line), table=FlagTable.load(build))
    assert parsed.accepted, [item.words for item in parsed.refused]
    return to_settings(parsed, model=llama(), machine=machine())


def default(text: str, flag: str) -> str:
    """What a help says behind an argument."""
    found = re.search(
        rf"^{flag},.*?default:\s+'?([\w-]+)", (DATA / text).read_text(), re.MULTILINE | re.DOTALL
    )
    assert found
    return found[1]


@pytest.mark.parametrize(("build", "text"), [(9093, "help-b9093.txt"), (4879, "help-7841fc7.txt")])
def test_defaults_are_those_of_the_builds_own_help(build: int, text: str) -> None:
    """-c 0 is the model's own context, -np -1 is four slots (tools/server/server.cpp)."""
    found = reading("llama-server -m m.gguf", build)
    assert found.settings.context == (int(default(text, "-c")) or 131072)
    assert found.settings.parallel == {"-1": 4, "1": 1}[default(text, "-np")]
    assert found.flash_attn == {"auto": "auto", "disabled": "off"}[default(text, "-fa")]
    assert found.fit_enabled == ("--fit" in (DATA / text).read_text())
    limit = int(default(text, "-cram")) if "-cram" in (DATA / text).read_text() else 0
    assert found.settings.cache_ram_bytes == limit * MIB


def test_old_builds_offload_nothing_unasked() -> None:
    """llama_model_default_params: n_gpu_layers is 0, and all with Metal (llama-cpp-python 0.3.1 to 0.3.16)."""
    assert reading("llama-server -m m.gguf", 6324).settings.gpu_layers == 0
    assert reading("llama-server -m m.gguf -ngl 99", 6324).settings.gpu_layers == 99
    assert reading("llama-server -m m.gguf", 8643).settings.gpu_layers == 33
    parsed = parse(["llama-server", "-m", "m.gguf"], table=FlagTable.load(6324))
    mac = machine(backend="metal", integrated=True)
    assert to_settings(parsed, model=llama(), machine=mac).settings.gpu_layers == 33


def test_the_oldest_tree_takes_the_models_own_context() -> None:
    """common/common.h: n_ctx = 0 in b3848, 4096 in b4094."""
    assert reading("llama-server -m m.gguf", 3848).settings.context == 131072
    assert reading("llama-server -m m.gguf", 4094).settings.context == 4096


def test_checkpoints_by_their_first_name() -> None:
    """common/common.h, b6324: n_swa_checkpoints = 3."""
    assert reading("llama-server -m m.gguf", 6324).settings.ctx_checkpoints == 3
    assert reading("llama-server -m m.gguf --swa-checkpoints 5", 6324).settings.ctx_checkpoints == 5
    assert reading("llama-server -m m.gguf", 5904).settings.ctx_checkpoints == 0


def test_old_switches_set_what_load_mode_does_today() -> None:
    assert reading("llama-server -m m.gguf --no-mmap", 9093).settings.load_mode == "none"
    assert reading("llama-server -m m.gguf --mlock", 9093).settings.load_mode == "mmap+mlock"
    assert reading("llama-server -m m.gguf -fa", 5904).flash_attn == "on"
