"""The words of wishes: every value that cannot be meant is one line that says what is expected."""

from __future__ import annotations

from typing import Any

import pytest

from plan_llama.cli.options import EngineOptions, WishOptions
from plan_llama.cli.wishes import engine_build, wishes
from plan_llama.errors import UsageError
from plan_llama.units import GIB


def options(**values: Any) -> WishOptions:
    """The options of a command line that gives these."""
    defaults: dict[str, Any] = dict.fromkeys(WishOptions.__dataclass_fields__)
    defaults |= {"workload": "chat", "objective": "balanced", "allow_paging": False}
    return WishOptions(**{**defaults, **values})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"ctx": "-1"}, "--ctx"),
        ({"ctx": "0"}, "--ctx"),
        ({"ctx": "32Kb"}, "--ctx"),
        ({"ctx": ""}, "--ctx"),
        ({"ctx": "99999999999"}, "--ctx"),
        ({"ctx": "9" * 5000}, "--ctx"),
        ({"ctx": "٣٢"}, "--ctx"),
        ({"workload": "games"}, "--workload"),
        ({"objective": "fast"}, "--objective"),
        ({"kv_type": "q3_K"}, "--kv-type"),
        ({"margin": "24"}, "--margin"),
        ({"margin": "-1GiB"}, "--margin"),
        ({"pin": ["ubatch"]}, "--pin"),
        ({"pin": ["ubatch=0"]}, "--pin"),
        ({"pin": ["ubatch=512x"]}, "--pin"),
        ({"pin": ["flash-attn=1"]}, "--pin"),
        ({"pin": ["load-mode=fast"]}, "--pin"),
        ({"pin": ["colour=red"]}, "--pin"),
        ({"pin": ["kv-type=q9"]}, "--kv-type"),
        ({"pin": ["ubatch=" + "9" * 5000]}, "--pin"),
    ],
)
def test_a_wrong_wish_is_one_line(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as raised:
        wishes(options(**given))
    line = raised.value.line()
    assert named in line
    assert "\n" not in line


def test_right_wishes() -> None:
    made = wishes(options(ctx="32K", margin="2GiB", pin=["kv-type=q8_0", "ubatch=512"], parallel=2))
    assert (made.context, made.margin_bytes, made.kv_type, made.parallel) == (32768, 2 * GIB, "q8_0", 2)
    assert dict(made.pins) == {"ubatch": "512"}
    assert wishes(options(ctx="max")).context == "max"
    assert wishes(options(pin=["context=4096", "parallel=3"])).context == 4096


@pytest.mark.parametrize("build", ["b", "latest", "11434.5", "-3", "b99999999999", "b" + "9" * 5000])
def test_a_wrong_build(build: str) -> None:
    with pytest.raises(UsageError, match="engine-build"):
        engine_build(EngineOptions(engine="llama.cpp", engine_build=build, engine_path=None))


def test_builds_with_and_without_the_letter() -> None:
    for text in ("b11434", "11434"):
        assert engine_build(EngineOptions(engine="llama.cpp", engine_build=text, engine_path=None)) == 11434
