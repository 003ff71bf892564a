"""llama-cli and llama-bench place a model as the server's command does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_llama.engines.arguments import history
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.llama_server import command
from plan_llama.engines.older_builds import for_build
from plan_llama.engines.other_programs import others
from plan_llama.memory.types import Settings
from tests.property.test_command_roundtrip import plans
from tests.unit.engine_fixtures import glm, machine

# What decides where weights and caches lie, and how large the buffers are.
PLACES = (
    "gpu_layers",
    "split_mode",
    "tensor_split",
    "overrides",
    "kv_offload",
    "op_offload",
    "kv_type_k",
    "kv_type_v",
)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_the_same_placement(plan: tuple[int, Settings]) -> None:
    cards, wanted = plan
    where = machine(cards)
    made = command(
        wanted, model=glm(), machine=where, model_path="/m/x.gguf", executable="/opt/llama/llama-server"
    )
    chat, measure = others(made, context=wanted.context_per_slot, prompt_tokens=1024)
    assert chat.argv[0] == "/opt/llama/llama-cli"
    assert measure.argv[0] == "/opt/llama/llama-bench"
    for item in (chat, measure):
        parsed = parse(item.argv, table=FlagTable.load())
        assert parsed.accepted, [(found.words, found.reason) for found in parsed.refused]
        read = to_settings(parsed, model=glm(), machine=where).settings
        for name in PLACES:
            mine, theirs = getattr(wanted, name), getattr(read, name)
            if name == "gpu_layers":
                mine, theirs = (min(size, 80) for size in (mine, theirs))
            assert mine == theirs or (name == "overrides" and _same(mine, theirs)), name
    assert to_settings(
        parse(chat.argv, table=FlagTable.load()), model=glm(), machine=where
    ).settings.context == (wanted.context_per_slot)


def _same(mine: tuple[object, ...], theirs: tuple[object, ...]) -> bool:
    """llama-bench has no -ncffn and no -cmoe: the patterns say the same."""
    return [str(item) for item in mine] == [str(item) for item in theirs]


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from([tree.build for tree in history().trees]))
def test_each_build_takes_its_own(plan: tuple[int, Settings], build: int) -> None:
    cards, wanted = plan
    newest = command(wanted, model=glm(), machine=machine(cards), model_path="m.gguf")
    made, _ = for_build(newest, build)
    for item in others(made, context=4096, prompt_tokens=512):
        parsed = parse(item.argv, table=FlagTable.load(build))
        assert parsed.accepted, [(found.words, found.reason) for found in parsed.refused]


def test_what_llama_bench_cannot_be_told_is_said() -> None:
    wanted = Settings(context=4096, batch=2048, ubatch=512, gpu_layers=99, swa_full=True, load_mode="none")
    made = command(wanted, model=glm(), machine=machine(1), model_path="m.gguf")
    _, measure = others(made, context=4096, prompt_tokens=512)
    assert measure.what == "Measure it with llama-bench, which knows no --swa-full"
    assert others(replace(made, build="0.33.0"), context=1, prompt_tokens=1) == ()


@pytest.mark.parametrize(
    ("server", "cli"),
    [
        ("llama-server", "llama-cli"),
        (r"C:\x y\llama-server.exe", r"C:\x y\llama-cli.exe"),
        ("./s", "./llama-cli"),
    ],
)
def test_the_program_lies_beside_the_server(server: str, cli: str) -> None:
    wanted = Settings(context=4096, batch=2048, ubatch=512)
    made = command(wanted, model=glm(), machine=machine(0), model_path="m.gguf", executable=server)
    assert others(made, context=1, prompt_tokens=1)[0].argv[0] == cli
