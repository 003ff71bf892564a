"""The Modelfile and environment of a plan make Ollama start a llama-server with the plan's settings.

Its command line is built by the rules of Ollama's source (engines/ollama_runner.py), and read by those of its build of
llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.engines import modelfile, ollama, ollama_runner
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import command
from plan_llama.engines.older_builds import adapt
from plan_llama.engines.ollama_facts import facts
from plan_llama.memory.patterns import cpu_moe, expert_layers, n_cpu_moe
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import MIB
from tests.unit.engine_fixtures import glm, machine

TABLE = FlagTable.load(facts().llama_cpp)
# fmt: off
SAME = (
    "context", "parallel", "kv_unified", "batch", "ubatch", "flash_attn", "kv_type_k", "kv_type_v", "kv_offload",
    "repack", "swa_full", "load_mode", "threads", "cache_ram_bytes", "ctx_checkpoints", "draft_layers",
)
# fmt: on


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, Settings]:
    cards = draw(st.integers(0, 3))
    parallel = draw(st.integers(1, 4))
    context = draw(st.integers(8, 512)) * 256 * parallel
    ubatch = draw(st.sampled_from([512, 1024, 2048]).filter(lambda size: size <= context))
    overrides: tuple[Override, ...] = ()
    devices: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    layers = draw(st.sampled_from([0, 1, 40, 79, 81])) if cards else 0
    if layers:
        groups = draw(st.lists(st.sets(st.integers(3, 78), min_size=1), max_size=2))
        overrides = tuple(expert_layers(group, draw(st.integers(HOST, cards - 1))) for group in groups)
        overrides += draw(st.sampled_from([(), (cpu_moe(),), n_cpu_moe(draw(st.integers(1, 40)))]))
        if cards > 1:
            order = draw(st.permutations(range(cards)))[: draw(st.integers(1, cards))]
            devices = tuple(order) if order != list(range(cards)) else ()
            if len(order) > 1 and draw(st.booleans()):
                shares = tuple(draw(st.integers(1, 40)) if i in order else 0 for i in range(cards))
            if devices:  # what a plan leaves out holds nothing
                overrides = tuple(o for o in overrides if o.device == HOST)
    kv_type = draw(st.sampled_from(["f16", "q8_0", "q4_0"]))
    return cards, Settings(
        context=context,
        parallel=parallel,
        batch=ubatch,
        ubatch=ubatch,
        flash_attn=draw(st.booleans()),
        kv_type_k=kv_type,
        kv_type_v=kv_type,
        gpu_layers=layers,
        devices=devices,
        main_gpu=devices[0] if devices else 0,
        tensor_split=shares,
        overrides=overrides,
        kv_offload=draw(st.booleans()),
        repack=draw(st.booleans()),
        swa_full=draw(st.booleans()),
        load_mode=draw(st.sampled_from(["none", "mmap", "mlock", "mmap+mlock", "dio"])),
        threads=draw(st.sampled_from([None, 1, 16])),
        cache_ram_bytes=draw(st.integers(0, 16384)) * MIB,
        ctx_checkpoints=draw(st.integers(0, 64)),
        draft_layers=draw(st.booleans()),
    )


@pytest.mark.slow
@given(plans())
@settings(deadline=None, max_examples=60)
def test_ollama_starts_what_was_planned(plan: tuple[int, Settings]) -> None:
    cards, wanted = plan
    here, model = machine(cards), replace(glm(), path="/models/glm.gguf")
    server = command(wanted, model=model, machine=here, model_path="model.gguf")
    server, lost = adapt(server, TABLE.listed("llama-server"), facts().llama_cpp)
    assert not lost
    made, said = ollama.command(
        wanted, model=model, machine=here, sources=["/models/glm.gguf"], server=server
    )
    assert not [item for item in said if item.severity == "error"]
    read = modelfile.read(made.files[0].text)
    started = ollama_runner.runner(read, made.env, model=model, machine=here)
    parsed = parse(started.argv, table=TABLE, env=started.env)
    assert parsed.accepted, parsed.refused
    reading = to_settings(parsed, model=model, machine=here)
    found = reading.settings
    for key in SAME:
        assert getattr(found, key) == getattr(wanted, key), key
    on_gpu = min(wanted.gpu_layers, 80)
    assert min(found.gpu_layers, 80) == on_gpu or (cards == 0 and not found.gpu_layers)
    if on_gpu:
        assert found.overrides == wanted.overrides
        used = wanted.devices or tuple(range(cards))
        one = found.split_mode == "none"
        assert ((found.main_gpu,) if one else found.devices or tuple(range(cards))) == used
        if len(used) > 1:
            assert found.tensor_split == wanted.tensor_split
    assert not reading.fit_enabled or not wanted.overrides
