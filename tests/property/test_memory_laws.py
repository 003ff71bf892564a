"""Laws that hold for any model and settings: sums, conservation, more is never less."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plan_llama.memory.caches import bytes_per_token
from plan_llama.memory.context import context_bytes, reserved_batch
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.footprint import footprint
from plan_llama.memory.patterns import cpu_moe, expert_layers, n_cpu_moe
from plan_llama.memory.scheduler import OTHER_GPU_KIND
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers, Settings
from plan_llama.memory.weights import place
from plan_llama.solver.profiles import beyond
from plan_llama.units import GIB, MIB
from tests.conformance_cases import SETS, Set
from tests.conformance_cases import models as stored_models
from tests.conformance_cases import table as stored
from tests.oracle_cases import machine_with, table
from tests.small_models import llama_like, qwen3moe_like

LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DENSE = ModelTable(llama_like(layers=6))
SPARSE = ModelTable(qwen3moe_like(layers=6))
LARGE = table("qwen3-30b-a3b-q4_k_m")

models = st.sampled_from([DENSE, SPARSE])
cards = st.lists(st.integers(4, 96).map(lambda size: size * GIB), min_size=1, max_size=4)
drawn = st.builds(
    Settings,
    context=st.sampled_from([512, 4096, 16384, 65536]),
    parallel=st.sampled_from([1, 2, 4]),
    kv_unified=st.booleans(),
    ubatch=st.sampled_from([64, 512, 1024, 2048]),
    flash_attn=st.booleans(),
    gpu_layers=st.integers(0, 8),
    op_offload=st.booleans(),
    kv_offload=st.booleans(),
    overrides=st.sampled_from([(), (cpu_moe(),), n_cpu_moe(2), (expert_layers([1, 4], HOST),)]),
)


def made(model: ModelTable, given: Settings, free: list[int]) -> Buffers:
    """Plain sizes: CUDA's padding makes a whole of parts a few bytes more."""
    return buffers(model, given, [DeviceMemory(free_bytes=size, kind=OTHER_GPU_KIND) for size in free])


def total(found: Buffers) -> int:
    """Bytes of all cards."""
    return sum(part.total_bytes for part in found.devices)


def held(found: Buffers) -> int:
    """Bytes of all cards that do not depend on the allocator's packing."""
    return sum(part.weights_bytes + part.context_bytes for part in found.devices)


def assert_no_less(more: Buffers, less: Buffers, chosen: Settings) -> None:
    """Best fit is not monotone: a larger tensor may fall into a hole where a smaller one would have split it. So the
    work space may shrink, by one tensor a card at most: an activation (all rows of these models have at most 2,048
    elements) or, with -nkvo, the copy of a cache (at most 256 elements a cell). llama.cpp b11434 reserves 28,049,920
    bytes for the sparse model at -ngl 2 -c 16384 -nkvo -ub 64, and 23,364,608 at -ub 128.
    """
    batch = reserved_batch(chosen)
    tensor = batch.tokens * 2048 * 4
    if not chosen.kv_offload:
        tensor = max(tensor, batch.cells * batch.streams * 256 * 2)
    assert held(more) >= held(less)
    assert total(more) >= total(less) - tensor * len(less.devices)


@LAWS
@given(models, drawn, cards)
def test_parts_add_up(model: ModelTable, chosen: Settings, free: list[int]) -> None:
    machine = machine_with(tuple((size // MIB, 0) for size in free))
    used = footprint(model, chosen, machine, beyond())
    for index, (device, pool) in enumerate(zip(used.devices, used.pools[1:], strict=True)):
        parts = device.weights_bytes + device.context_bytes + device.compute_bytes
        assert device.total_bytes == parts + device.overhead_bytes == pool.used_bytes
        assert device.peak_bytes >= device.total_bytes
        # the engine makes a context on every card it is given, also where nothing is placed
        given_to_engine = bool(parts) or chosen.split_mode != "none" or chosen.main_gpu == index
        assert bool(device.overhead_bytes) == given_to_engine
    host = used.host
    parts = host.weights_bytes + host.context_bytes + host.compute_bytes + host.cache_bytes
    assert host.total_bytes == parts == used.pools[0].used_bytes


@LAWS
@given(models, drawn, cards)
def test_weights_and_context_are_conserved(model: ModelTable, chosen: Settings, free: list[int]) -> None:
    """Wherever things lie, they are the file's tensors and the cells of every layer; alignment is to 128 bytes."""
    found = made(model, chosen, free)
    everywhere = (*found.devices, found.host)
    stored = sum(part.weights_bytes for part in everywhere)
    file = sum(tensor.nbytes for tensor in model.spec.tensors)
    assert 0 <= stored - file <= 128 * len(model.spec.tensors)
    pool = -(-chosen.context // 256) * 256
    if not chosen.kv_unified:
        pool = -(-(pool // chosen.parallel) // 256) * 256 * chosen.parallel
    assert sum(part.context_bytes for part in everywhere) == pool * bytes_per_token(model.spec)


@LAWS
@given(models, drawn, cards, st.sampled_from([2, 4, 16]))
def test_more_context_needs_no_less(
    model: ModelTable, chosen: Settings, free: list[int], factor: int
) -> None:
    more = replace(chosen, context=chosen.context * factor)
    assert_no_less(made(model, more, free), made(model, chosen, free), chosen)


@LAWS
@given(models, drawn, cards, st.sampled_from([2, 4]))
@example(SPARSE, Settings(context=16384, ubatch=64, gpu_layers=2, kv_offload=False), [4 * GIB], 2)
def test_a_larger_micro_batch_needs_no_less(
    model: ModelTable, chosen: Settings, free: list[int], factor: int
) -> None:
    less = replace(chosen, batch=8192)
    more = replace(less, ubatch=chosen.ubatch * factor)
    assert_no_less(made(model, more, free), made(model, less, free), more)


@pytest.mark.slow
@LAWS
@given(models, drawn, cards)
def test_slots_of_the_same_length_need_no_less(model: ModelTable, chosen: Settings, free: list[int]) -> None:
    one = replace(chosen, parallel=1, kv_unified=False)
    four = replace(one, parallel=4, context=4 * one.context)
    assert_no_less(made(model, four, free), made(model, one, free), four)


@pytest.mark.slow
@LAWS
@given(models, drawn, cards)
def test_more_layers_need_no_less(model: ModelTable, chosen: Settings, free: list[int]) -> None:
    """Weights and caches; the work space of a layer that is offloaded may shrink when it comes to stay."""
    more = replace(chosen, gpu_layers=chosen.gpu_layers + 1)
    before, after = made(model, chosen, free), made(model, more, free)
    held = [
        sum(part.weights_bytes + part.context_bytes for part in found.devices) for found in (before, after)
    ]
    assert held[0] <= held[1]


@pytest.mark.slow
@LAWS
@given(drawn, cards, st.integers(0, 5))
def test_fewer_host_experts_need_no_less(chosen: Settings, free: list[int], count: int) -> None:
    whole = replace(chosen, gpu_layers=7)
    fewer = made(SPARSE, replace(whole, overrides=n_cpu_moe(count)), free)
    more = made(SPARSE, replace(whole, overrides=n_cpu_moe(count + 1)), free)
    assert sum(p.weights_bytes for p in fewer.devices) > sum(p.weights_bytes for p in more.devices)
    assert fewer.host.weights_bytes < more.host.weights_bytes


@LAWS
@given(drawn, st.permutations([0, 2, 3, 5]))
@example(Settings(context=4096, gpu_layers=7), [5, 0, 2, 3])
def test_layers_may_be_named_in_any_order(chosen: Settings, named: list[int]) -> None:
    """One pattern with alternatives, or one pattern per layer in any order: the same placement."""
    free = [24 * GIB, 24 * GIB]
    whole = replace(chosen, gpu_layers=7)
    apart = tuple(expert_layers([il], HOST) for il in named)
    assert made(SPARSE, replace(whole, overrides=apart), free) == made(
        SPARSE, replace(whole, overrides=(expert_layers(named, HOST),)), free
    )


@pytest.mark.slow
@LAWS
@given(st.integers(1, 4), st.sampled_from([4096, 16384, 65536]), st.booleans())
def test_splitting_a_real_model_conserves_it(count: int, context: int, flash_attn: bool) -> None:
    chosen = Settings(context=context, gpu_layers=99, flash_attn=flash_attn)
    one = made(LARGE, chosen, [96 * GIB])
    split = made(LARGE, chosen, [96 * GIB] * count)
    assert sum(part.weights_bytes for part in split.devices) == one.devices[0].weights_bytes
    assert sum(part.context_bytes for part in split.devices) == one.devices[0].context_bytes
    assert split.host.weights_bytes == one.host.weights_bytes
    assert total(split) >= total(one)


@pytest.mark.slow
@LAWS
@given(models, drawn, cards)
def test_equal_settings_give_equal_answers(model: ModelTable, chosen: Settings, free: list[int]) -> None:
    """What the table remembers changes nothing."""
    assert made(model, chosen, free) == made(ModelTable(model.spec), chosen, free)


@pytest.mark.slow
@LAWS
@given(models, drawn, st.permutations([8, 24, 16, 48]))
def test_the_order_of_cards_moves_layers_and_loses_none(
    model: ModelTable, chosen: Settings, sizes: list[int]
) -> None:
    """Without -ts the split follows the free memory: what all cards hold together is the same in any order."""
    ordered = made(model, chosen, [size * GIB for size in sorted(sizes)])
    found = made(model, chosen, [size * GIB for size in sizes])
    for part in ("weights_bytes", "context_bytes"):
        together = [sum(getattr(card, part) for card in some.devices) for some in (ordered, found)]
        assert together[0] == together[1]
        assert getattr(ordered.host, part) == getattr(found.host, part)


@LAWS
@given(models, drawn, st.permutations([8, 24, 48]))
def test_with_given_shares_the_order_of_cards_does_not_matter(
    model: ModelTable, chosen: Settings, sizes: list[int]
) -> None:
    """-ts decides alone: what the cards have free is not asked for."""
    shared = replace(chosen, tensor_split=(3.0, 1.0, 2.0))
    assert made(model, shared, [size * GIB for size in sizes]) == made(model, shared, [24 * GIB] * 3)


@LAWS
@given(models, drawn, st.lists(st.integers(4, 96), min_size=2, max_size=4), st.data())
def test_one_card_of_several_is_as_good_as_alone(
    model: ModelTable, chosen: Settings, sizes: list[int], data: st.DataObject
) -> None:
    """-sm none: whichever card is the main one, it holds what it would hold alone, and the others hold nothing."""
    main = data.draw(st.integers(0, len(sizes) - 1))
    alone = made(model, chosen, [24 * GIB])
    found = made(model, replace(chosen, split_mode="none", main_gpu=main), [size * GIB for size in sizes])
    assert found.devices[main] == alone.devices[0]
    assert found.host == alone.host
    assert not any(part.total_bytes for index, part in enumerate(found.devices) if index != main)


@pytest.mark.parametrize(("kind", "model"), [(kind, model) for kind in SETS for model in stored_models(kind)])
def test_every_architecture_caches_no_less_of_more(kind: Set, model: str) -> None:
    """Windows, compressed caches, states: more context, slots or micro-batch, or a wider type, is never less."""
    table = stored(kind, model)

    def cached(given: Settings) -> int:
        batch = reserved_batch(given, table.windows)
        return context_bytes(table, batch, place(table, given, []), {})[HOST]

    for unified in (True, False):
        less = Settings(context=8192, parallel=2, kv_unified=unified, ubatch=256)
        for more in (
            replace(less, context=2 * less.context),
            replace(less, context=2 * less.context, parallel=4),
            replace(less, parallel=4),
            replace(less, ubatch=2048),
            replace(less, swa_full=True),
            replace(less, kv_type_k="f32", kv_type_v="f32"),
            replace(less, flash_attn=False),
        ):
            assert cached(more) >= cached(less), (less, more)
        assert cached(less) >= cached(replace(less, kv_type_k="q8_0", kv_type_v="q8_0"))
