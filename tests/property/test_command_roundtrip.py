"""What is written is read back as the same settings."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.engines.arguments import history
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import command
from plan_llama.engines.older_builds import for_build
from plan_llama.memory.patterns import cpu_moe, expert_layers, n_cpu_ffn, n_cpu_moe
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import MIB
from tests.unit.engine_fixtures import glm, machine

NAMES = {name for item in FlagTable.load().arguments for name in item.names}
WORDS = [*sorted(NAMES), "-1", "x", "1,2", "="]
KV_TYPES = ("f16", "q8_0", "q4_0", "bf16")


@st.composite
def overrides(draw: st.DrawFn, cards: int) -> tuple[Override, ...]:
    """What a plan writes: experts of some layers to some cards, the rest by one of the three short forms."""
    groups = draw(st.lists(st.sets(st.integers(3, 78), min_size=1), max_size=3))
    found = tuple(expert_layers(group, draw(st.integers(HOST, cards - 1))) for group in groups)
    count = draw(st.integers(0, 40))
    tail = draw(st.sampled_from([(), (cpu_moe(),), n_cpu_moe(count), n_cpu_ffn(count)]))
    return (*found, *tail)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, Settings]:
    cards = draw(st.integers(0, 3))
    parallel = draw(st.integers(1, 8))
    unified = draw(st.booleans())
    context = draw(st.integers(8, 512)) * 256 * parallel
    batch = draw(st.sampled_from([512, 1024, 2048, 4096, 8192]).filter(lambda size: size <= context))
    split = draw(st.sampled_from(["layer", "row", "none"])) if cards > 1 else "layer"
    shares: tuple[float, ...] = ()
    main = 0
    devices: tuple[int, ...] = ()
    if split == "none":
        main = draw(st.integers(0, cards - 1))
    elif cards > 1:
        order = draw(st.permutations(range(cards)))[: draw(st.integers(1, cards))]
        devices = tuple(order) if order != list(range(cards)) else ()
        if len(order) > 1 and draw(st.booleans()):
            shares = tuple(draw(st.integers(1, 40)) if i in order else 0 for i in range(cards))
        main = draw(st.sampled_from(order))
    return cards, Settings(
        context=context,
        parallel=parallel,
        kv_unified=unified,
        slot_limit=draw(st.sampled_from([None, 4096, 65536])),
        batch=batch,
        ubatch=draw(st.sampled_from([128, 512, 1024, 2048]).filter(lambda size: size <= batch)),
        flash_attn=draw(st.booleans()),
        kv_type_k=draw(st.sampled_from(KV_TYPES)),
        kv_type_v=draw(st.sampled_from(KV_TYPES)),
        gpu_layers=draw(st.integers(0, 80)) if cards else 0,
        devices=devices,
        split_mode=split,  # type: ignore[arg-type]  # one of the literals above
        tensor_split=shares,
        main_gpu=main,
        overrides=draw(overrides(cards)) if cards else (),
        kv_offload=draw(st.booleans()),
        op_offload=draw(st.booleans()),
        repack=draw(st.booleans()),
        swa_full=draw(st.booleans()),
        load_mode=draw(st.sampled_from(["none", "mmap", "mlock", "mmap+mlock", "dio"])),
        threads=draw(st.sampled_from([None, 1, 16])),
        cache_ram_bytes=draw(st.integers(0, 16384)) * MIB,
        ctx_checkpoints=draw(st.integers(0, 64)),
        draft_layers=draw(st.booleans()),
        threads_batch=draw(st.sampled_from([None, 3, 12])),
    )


@settings(max_examples=150, deadline=None)
@given(plans())
def test_written_and_read_back(plan: tuple[int, Settings]) -> None:
    cards, wanted = plan
    where = machine(cards)
    written = command(wanted, model=glm(), machine=where, model_path="/models/GLM 5.1.gguf")
    parsed = parse(written.argv, table=FlagTable.load())
    assert [item for item in parsed.arguments if item.status != "ok" or item.reason] == []
    reading = to_settings(parsed, model=glm(), machine=where)
    assert reading.settings == wanted
    assert reading.model_path == "/models/GLM 5.1.gguf"
    assert not reading.fit_enabled


# Settings that a build without the argument does not have; -ncmoe is written as a pattern there.
WITHOUT = {
    "-nr": "repack",
    "--swa-full": "swa_full",
    "--ctx-checkpoints": "ctx_checkpoints",
    "--cache-ram": "cache_ram_bytes",
    "-kvu": "kv_unified",
    "--kv-unified-per-slot": "slot_limit",
    "--no-op-offload": "op_offload",
    "-ncmoe": "overrides",
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(plans(), st.sampled_from([tree.build for tree in history().trees]))
def test_written_for_another_build_and_read_back(plan: tuple[int, Settings], build: int) -> None:
    """Each tree's table takes the command, and it means the same but for what such a build cannot be told."""
    cards, wanted = plan
    where = machine(cards)
    newest = command(wanted, model=glm(), machine=where, model_path="m.gguf")
    written, said = for_build(newest, build)
    table = FlagTable.load(build)
    parsed = parse(written.argv, table=table)
    assert parsed.accepted, [(item.words, item.reason) for item in parsed.refused]
    if any(item.severity == "error" for item in said):
        return
    found = to_settings(parsed, model=glm(), machine=where).settings
    differs = {
        item.name for item in fields(Settings) if getattr(found, item.name) != getattr(wanted, item.name)
    }
    lacking = {name for flag, name in WITHOUT.items() if table.lookup(flag, "llama-server") is None}
    assert differs <= lacking | {"older"}


@pytest.mark.slow
@given(st.lists(st.text(max_size=20), max_size=12))
def test_no_words_bring_the_reader_down(words: list[str]) -> None:
    parsed = parse(["llama-server", *words], table=FlagTable.load())
    to_settings(parsed, model=glm(), machine=machine(2))


@given(st.lists(st.sampled_from(WORDS)))
def test_no_arguments_bring_the_reader_down(words: list[str]) -> None:
    for program in ("llama-server", "llama-bench", "llama-fit-params", "llama-cli"):
        parsed = parse([program, *words], table=FlagTable.load())
        to_settings(parsed, model=glm(), machine=machine(1))
