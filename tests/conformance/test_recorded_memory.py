"""The predictions against what llama.cpp b11434 reserved for many models and flags (tests/data/conformance).

Limits: weights and context within 0.1 % or 1 MiB; compute buffers within 5 % or 16 MiB (1 MiB on a device that holds
under 1 GiB), a device's total within 1 % or that, for 95 % of a model's numbers; never below by more than 2 % or that.
Architectures that do not keep them yet are named in not_met.toml, by set and by what is wrong.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from plan_llama.engines.refusals import refusals
from tests.conformance.limits import PARTS, low, mostly_within, outside
from tests.conformance.report import numbers
from tests.conformance_cases import SETS, Measured, Set, measured, models, reading, spec, table
from tests.slow import slow_but

LISTS: dict[str, dict[str, list[str]]] = tomllib.loads(
    Path(__file__).with_name("not_met.toml").read_text(encoding="utf-8")
)
# as different as they come, and quick
FAST: dict[Set, tuple[str, ...]] = {
    "real": (
        "deepseek-v2-lite-q8_0",
        "falcon-h1-0.5b-q8_0",
        "gpt-oss-20b-mxfp4",
        "hunyuan-7b-q8_0",
        "lfm2-1.2b-q4_0",
        "mamba-130m-hf-f16",
        "olmoe-1b-7b-bf16",
        "phi-4-q4_k_m",
        "t5-base-q8_0",
    ),
    "tiny": models("tiny")[::8],
}
MODELS = slow_but(
    [(kind, model) for kind in SETS for model in models(kind)],
    *((kind, model) for kind in SETS for model in FAST[kind]),
)


@cache
def cases(kind: Set) -> tuple[Measured, ...]:
    return tuple(measured(kind))


def listed(kind: Set, what: str, model: str) -> bool:
    """Whether a model's architecture is among those that do not keep a limit."""
    return spec(kind, model).architecture in LISTS[kind][what]


def test_many_models_under_many_flags() -> None:
    """What the measurements cover."""
    assert len({spec("real", model).architecture for model in models("real")}) >= 45
    assert len(models("tiny")) == 128
    for kind in SETS:
        found = [case for case in cases(kind) if not case.refused]
        assert set(Counter(case.model for case in found)) == set(models(kind))
        words = Counter(word for case in found for word in case.asked.flags)
        rare = (
            "-nkvo --swa-full --no-op-offload -cmoe -ncmoe -ncffn -ot -ts -mg -kvu q8_0 q4_0 off 128 2048 512"
        )
        assert min(words[word] for word in rare.split()) >= 20
        cards = Counter(len(case.asked.cards) for case in found)
        assert min(cards[count] for count in (0, 1, 2, 4)) >= 100
        assert sum(len(set(case.asked.cards)) > 1 for case in found) >= 100


def test_every_model_is_measured_often() -> None:
    """At least 12 times, but where the engine refuses what others take."""
    few = Counter(case.model for case in cases("real") if not case.refused)
    assert {model for model, count in few.items() if count < 12} <= {"kimi-linear-48b-a3b-q4_k_m"}
    few = Counter(case.model for case in cases("tiny") if not case.refused)
    assert {model for model, count in few.items() if count < 12} <= {"grok-moe", "laguna-moe"}


@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_weights_and_context(kind: Set, model: str) -> None:
    wrong = [str(number) for part in PARTS[:2] for number in outside(numbers(kind, model), part)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("kind", "model"), MODELS)
def test_compute_and_totals(kind: Set, model: str) -> None:
    found = numbers(kind, model)
    if not listed(kind, "not_met", model):
        wrong = [str(number) for part in PARTS[2:] for number in outside(found, part)]
        assert mostly_within(found), "\n".join(wrong)
    if not listed(kind, "too_low", model):
        assert not low(found), "\n".join(map(str, low(found)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETS)
def test_the_lists_shrink(kind: Set) -> None:
    """An architecture that keeps a limit does not stay among those that do not."""
    good = []
    for what, wrong in (("not_met", lambda found: not mostly_within(found)), ("too_low", low)):
        for architecture in LISTS[kind][what]:
            found = [model for model in models(kind) if spec(kind, model).architecture == architecture]
            if not any(wrong(numbers(kind, model)) for model in found):
                good.append(f"{kind}.{what}: {architecture}")
    assert not good, f"these keep the limit now, take them out of not_met.toml: {good}"


@pytest.mark.parametrize("model", slow_but(models("real"), *FAST["real"]))
def test_refused_where_the_engine_refuses(model: str) -> None:
    for case in (case for case in cases("real") if case.model == model):
        given = reading(case.asked, spec("real", model))
        said = refusals(given.settings, table=table("real", model), flash_attn=given.flash_attn)
        assert bool(said) == bool(case.refused), case.label
