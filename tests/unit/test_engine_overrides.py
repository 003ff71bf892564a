"""Patterns against the tensor names of real models."""

from __future__ import annotations

import random
import re

import pytest

from plan_llama.engines.overrides import device_names
from plan_llama.memory.patterns import (
    cpu_moe,
    expert_layers,
    movable_layers,
    n_cpu_ffn,
    n_cpu_moe,
    regex_for_layers,
)
from plan_llama.memory.types import HOST

from .engine_fixtures import machine, tensor_names


def matched(pattern: str, model: str) -> set[str]:
    return {name for name in tensor_names(model) if re.search(pattern, name)}


def test_regex_for_layers_is_exact() -> None:
    chance = random.Random(11434)  # noqa: S311  # a repeatable choice of samples
    sets = [set(range(a, b)) for a in range(0, 121, 3) for b in range(a + 1, 121, 7)]
    sets += [set(chance.sample(range(121), chance.randint(1, 120))) for _ in range(300)]
    names = [f"blk.{layer}.ffn_up_exps.weight" for layer in range(130)]
    for wanted in sets:
        group = regex_for_layers(wanted)
        assert "," not in group
        assert "=" not in group
        pattern = re.compile(rf"blk\.{group}\.ffn")
        assert {layer for layer, name in enumerate(names) if pattern.search(name)} == wanted


@pytest.mark.parametrize("layers", [[], [-1, 2]])
def test_no_regex_for_nothing(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="layers"):
        regex_for_layers(layers)


def test_experts_of_real_models() -> None:
    # GLM-5.1: 256 experts in blk.3 to blk.78, three dense blocks in front; three expert tensors per block
    model = "glm-5.1-ud-iq2"
    layers = range(3, 79)
    wanted = {f"blk.{n}.ffn_{part}_exps.weight" for n in layers for part in ("down", "gate", "up")}
    assert matched(cpu_moe().pattern, model) == wanted
    assert matched(expert_layers(layers, HOST).pattern, model) == wanted
    some = expert_layers([3, 10, 11, 40, 78], 0).pattern
    assert {name.split(".")[1] for name in matched(some, model)} == {"3", "10", "11", "40", "78"}
    assert len(matched(some, model)) == 15
    assert [len(matched(item.pattern, model)) for item in n_cpu_moe(5)] == [0, 0, 0, 3, 3]


def test_the_first_layers_and_the_last_one() -> None:
    every = range(3, 79)
    # the flag counts the dense layers in front, as llama.cpp does
    assert movable_layers("experts", [3, 4], [3, 4], every) == n_cpu_moe(5)
    assert movable_layers("experts", [3, 4, 78], [3, 4, 78], every) == (
        expert_layers([78], HOST),
        *n_cpu_moe(5),
    )
    assert movable_layers("experts", every, every, every) == (cpu_moe(),)
    for away in ([78], [4, 78], [3, 5]):
        assert movable_layers("experts", away, away, every) == (expert_layers(away, HOST),)


def test_dense_ffn_of_a_real_model() -> None:
    found = [matched(item.pattern, "llama-3.1-8b-q4_k_m") for item in n_cpu_ffn(32)]
    assert found[31] == {f"blk.31.ffn_{part}.weight" for part in ("down", "gate", "up")}
    assert all(len(names) == 3 for names in found)
    assert not matched(cpu_moe().pattern, "llama-3.1-8b-q4_k_m")


def test_device_names_count_per_backend() -> None:
    gpus = (*machine(2).gpus, *machine(1, backend="rocm").gpus, *machine(1, backend="metal").gpus)
    assert device_names(gpus) == ("CUDA0", "CUDA1", "ROCm0", "MTL0")
