"""What other builds reserve: which rules a build has, and what is said about them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from plan_llama.engines import memory_rules
from plan_llama.memory.types import OlderRule, Settings
from tests.unit.engine_fixtures import glm, llama

PLAIN = Settings(context=8192)


def said(build: int, **changes: object) -> list[tuple[str, str]]:
    settings = replace(PLAIN, **changes)  # type: ignore[arg-type]
    return [(item.severity, item.text) for item in memory_rules.findings(build, llama(), settings)]


def test_the_modelled_build_has_no_rules() -> None:
    assert memory_rules.older(memory_rules.MODELLED) == frozenset()
    assert said(memory_rules.MODELLED) == []


@pytest.mark.parametrize("build", [0, 1, None, 12000])
def test_nothing_is_known_of_builds_without_a_number_and_newer_ones(build: int | None) -> None:
    assert memory_rules.older(build) == frozenset()


def test_older_builds_have_more_rules() -> None:
    assert memory_rules.older(10884) == frozenset()  # today's, which needs more, until the older is known
    assert memory_rules.older(10883) == memory_rules.older(9496) == {"no-mixed-batch"}
    assert memory_rules.older(9442) == {"no-mixed-batch", "outputs-per-token"}
    assert memory_rules.older(9093) == {"no-mixed-batch", "outputs-per-token", "mask-f32"}
    # two are of another program only
    assert memory_rules.older(5000) == set(get_args(OlderRule)) - {"one-embedding", "fused-ops"}


def test_a_newer_build_is_named() -> None:
    ((severity, text),) = said(12000)
    assert severity == "warning"
    assert "b12000 is newer, and what changed in it is not known here" in text
    ((_, text),) = said(0)
    assert "a build without a number may be of any age" in text


def test_what_is_counted_is_told_and_only_what_touches_the_model() -> None:
    ((severity, text),) = said(9093)
    assert severity == "note"
    assert "a row of logits for every token" in text
    assert "f32" in text
    assert "latent" not in text
    assert "f32" not in said(9093, flash_attn=False)[0][1]
    assert "all slots share one cache" in said(5000, parallel=4)[0][1]
    assert "all slots share one cache" not in said(5000, parallel=4, kv_unified=True)[0][1]


def test_what_is_not_counted_is_told_with_its_side() -> None:
    texts = said(9093, kv_type_k="q8_0", kv_type_v="q8_0")
    assert any("its compute buffer is less than shown" in text for _, text in texts)
    older = [(item.severity, item.text) for item in memory_rules.findings(5000, glm(), PLAIN)]
    assert (
        "warning" in {severity for severity, text in older if "context buffer is more than shown" in text}
    ) is True


def test_a_build_without_a_change_is_told() -> None:
    ((severity, text),) = said(11000)
    assert severity == "note"
    assert "no change of more than 2 % since b11000 is known" in text


def test_the_page_has_the_counted_rules() -> None:
    page = (Path(__file__).parents[2] / "docs/concepts/memory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:before|up to) b(\d+) \| .* \| (compute|context) \|$", page, re.MULTILINE)
    assert rows == [
        (str(rule.until or rule.since), rule.buffer) for rule in memory_rules.rules() if rule.counted
    ]
