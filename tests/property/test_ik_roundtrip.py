"""A plan written for ik_llama.cpp is taken by its parser, and read back as the same settings."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.engines import ik_llama
from plan_llama.engines.commandline import parse
from plan_llama.engines.ik_reading import ik_settings
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.llama_server import command
from plan_llama.engines.older_builds import adapt
from plan_llama.memory.patterns import cpu_moe, expert_layers, n_cpu_moe
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import MIB
from tests.unit.engine_fixtures import llama, machine

TABLE = ik_llama.flags()
# what its --help of -ncmoe and --fit means otherwise, as cli/ik_command.py leaves it out
KNOWN = [line for line in TABLE.listed("llama-server") if not line.startswith(("-ncmoe", "--fit"))]
TENSORS = [f"blk.{il}.ffn_{part}_exps.weight" for il in range(80) for part in ("up", "down", "gate")]
# fmt: off
SAME = (
    "context", "parallel", "batch", "ubatch", "flash_attn", "kv_type_k", "kv_type_v", "kv_offload", "load_mode",
    "threads", "cache_ram_bytes", "ctx_checkpoints", "tensor_split", "main_gpu",
)
# fmt: on


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, Settings]:
    cards = draw(st.integers(0, 3))
    parallel = draw(st.integers(1, 4))
    context = draw(st.integers(8, 512)) * 256 * parallel
    batch = draw(st.sampled_from([512, 1024, 2048, 4096]).filter(lambda size: size <= context))
    overrides: tuple[Override, ...] = ()
    shares: tuple[float, ...] = ()
    if cards:
        groups = draw(st.lists(st.sets(st.integers(3, 31), min_size=1), max_size=2))
        overrides = tuple(expert_layers(group, draw(st.integers(HOST, cards - 1))) for group in groups)
        overrides += draw(st.sampled_from([(), (cpu_moe(),), n_cpu_moe(draw(st.integers(1, 30)))]))
    if cards > 1 and draw(st.booleans()):
        shares = tuple(draw(st.integers(1, 40)) for _ in range(cards))
    return cards, Settings(
        context=context,
        parallel=parallel,
        batch=batch,
        ubatch=draw(st.sampled_from([128, 512, 1024]).filter(lambda size: size <= batch)),
        flash_attn=draw(st.booleans()),
        kv_type_k=draw(st.sampled_from(["f16", "q8_0", "q4_0"])),
        kv_type_v=draw(st.sampled_from(["f16", "q8_0"])),
        gpu_layers=draw(st.sampled_from([0, 1, 20, 33])) if cards else 0,
        tensor_split=shares,
        overrides=overrides,
        kv_offload=draw(st.booleans()),
        load_mode=draw(st.sampled_from(["none", "mmap", "mlock", "mmap+mlock"])),
        threads=draw(st.sampled_from([None, 1, 16])),
        cache_ram_bytes=draw(st.integers(0, 16384)) * MIB,
        ctx_checkpoints=draw(st.integers(0, 64)),
    )


def where(overrides: tuple[Override, ...]) -> list[int | None]:
    """The device of each expert tensor: the first pattern that matches decides."""
    return [
        next((item.device for item in overrides if re.search(item.pattern, name)), None) for name in TENSORS
    ]


@cache
def taken() -> frozenset[str]:
    """The spellings that its own llama-server takes (tests/engine/record_ik_commands.py)."""
    asked = json.loads((Path(__file__).parents[1] / "data/ik_llama/accepted.json").read_text("utf-8"))
    return frozenset(
        word
        for program, words, error in asked
        for word in words
        if program == "llama-server" and not error and word.startswith("-")
    )


def written(plan: tuple[int, Settings]) -> LaunchCommand:
    """The command of a plan."""
    cards, wanted = plan
    here = command(wanted, model=llama(), machine=machine(cards), model_path="/m.gguf")
    made, lost = adapt(here, KNOWN, TABLE.build)
    assert not lost
    return made


@given(plans())
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_what_was_planned(plan: tuple[int, Settings]) -> None:
    cards, wanted = plan
    here = machine(cards)
    made = written(plan)
    assert {word for word in made.argv if word.startswith("-")} <= taken()
    parsed = parse(made.argv, table=TABLE)
    assert parsed.accepted, parsed.refused
    reading = ik_settings(parsed, model=llama(), machine=here)
    found = reading.settings
    for key in SAME:
        assert getattr(found, key) == getattr(wanted, key), key
    assert min(found.gpu_layers, 33) == wanted.gpu_layers  # all are written as 999
    assert where(found.overrides) == where(wanted.overrides)
    assert not reading.fit_enabled
