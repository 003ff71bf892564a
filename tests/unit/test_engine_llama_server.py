"""Commands for llama-server, word by word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.engines.llama_server import command
from plan_llama.errors import InputError
from plan_llama.memory.patterns import cpu_moe, expert_layers, n_cpu_moe
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.units import GIB

from .engine_fixtures import glm, machine

PLAN = Settings(
    context=32768,
    batch=2048,
    ubatch=1024,
    gpu_layers=80,
    cache_ram_bytes=2 * GIB,
    ctx_checkpoints=32,
    threads=16,
)


def words(settings: Settings, cards: int = 1, **more: object) -> str:
    made = command(settings, model=glm(), machine=machine(cards), model_path="glm.gguf", **more)  # type: ignore[arg-type]
    return " ".join(made.argv)


def test_one_card_with_experts_on_the_host() -> None:
    assert words(replace(PLAN, overrides=(cpu_moe(),))) == (
        "llama-server -m glm.gguf -c 32768 -np 1 -ngl all -cmoe -ub 1024 -fa on -t 16 --cache-ram 2048 "
        "--fit off --host 127.0.0.1 --port 8080"
    )


def test_layers_of_experts() -> None:
    assert " -ncmoe 74 " in words(replace(PLAN, overrides=n_cpu_moe(74)))
    mixed = (expert_layers(range(3, 20), 1), expert_layers([20, 21], 0), cpu_moe())
    assert (
        r" -ot blk\.([3-9]|1[0-9])\.ffn_(up|down|gate|gate_up)_(ch|)exps=CUDA1,"
        r"blk\.(2[01])\.ffn_(up|down|gate|gate_up)_(ch|)exps=CUDA0 -cmoe "
    ) in words(replace(PLAN, overrides=mixed), cards=2)
    # the last pattern in front makes the order of the short form impossible
    behind = (cpu_moe(), Override(pattern="output", device=HOST))
    assert r" -ot \.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU,output=CPU " in words(
        replace(PLAN, overrides=behind)
    )


def test_several_cards() -> None:
    split = replace(PLAN, tensor_split=(3.0, 1.5), kv_unified=True, parallel=2, slot_limit=16384)
    assert " -np 2 -kvu --kv-unified-per-slot 16384 -ngl all -ts 3,1.5 -ub" in words(split, cards=2)
    assert " -ngl all --device CUDA2,CUDA0 -ts 1,3 " in words(
        replace(PLAN, devices=(2, 0), main_gpu=2, tensor_split=(3.0, 0.0, 1.0)), cards=3
    )
    assert " -ngl all --device CUDA1 -ub" in words(replace(PLAN, devices=(1,), main_gpu=1), cards=2)
    assert " -ngl 40 -sm none -mg 1 " in words(
        replace(PLAN, gpu_layers=40, split_mode="none", main_gpu=1), cards=2
    )


def test_without_a_card_nothing_is_said_of_one() -> None:
    made = words(replace(PLAN, gpu_layers=0, load_mode="none"), cards=0)
    assert made == (
        "llama-server -m glm.gguf -c 32768 -np 1 -ub 1024 -fa on --load-mode none -t 16 --cache-ram 2048 "
        "--fit off --host 127.0.0.1 --port 8080"
    )


def test_unequal_cuda_cards_are_ordered_by_bus() -> None:
    two = machine(2)
    unequal = replace(two, gpus=(two.gpus[0], replace(two.gpus[1], name="RTX 3060", total_bytes=12 * GIB)))
    for where, expected in ((two, {}), (unequal, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})):
        made = command(PLAN, model=glm(), machine=where, model_path="a b.gguf")
        assert dict(made.env) == expected
    assert made.line.startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID llama-server -m 'a b.gguf' -c 32768 ")


def test_sampling_only_as_stated() -> None:
    assert " --temp 0.7 --top-p 1 --alias glm --host" in words(
        PLAN, sampling={"temperature": 0.7, "top_p": 1.0}, alias="glm"
    )
    with pytest.raises(InputError, match="sampling value 'typical_z'"):
        words(PLAN, sampling={"typical_z": 1.0})


@pytest.mark.parametrize("pattern", ["blk.{1,2}", "a=b", ""])
def test_patterns_that_cannot_be_written(pattern: str) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        words(replace(PLAN, overrides=(Override(pattern=pattern, device=HOST),)))


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InputError, match="names device 3"):
        words(replace(PLAN, overrides=(Override(pattern="a", device=3),)))


def test_another_name_for_a_device() -> None:
    made = words(replace(PLAN, overrides=(expert_layers([3], 0),)), device_names=["RPC0[127.0.0.1:50052]"])
    assert "exps=RPC0[127.0.0.1:50052] " in made
