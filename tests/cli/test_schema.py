"""The JSON that programs read, against the schema that ships with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import GLM, ONE_CARD, Cli
from tests.slow import slow_but

SCHEMA: dict[str, Any] = json.loads(
    files("plan_llama").joinpath("schema/plan.schema.json").read_text(encoding="utf-8")
)
# The keys that programs outside this repository read.
PROMISED = {
    "model": "name architecture quant file_bytes parameters active_parameters layers context_train source path present "
    "download",
    "settings": "context_per_slot context_pool parallel kv_unified batch ubatch flash_attn kv_type_k kv_type_v "
    "gpu_layers cpu_moe_layers load_mode threads",
    "speed": "decode_tok_s prefill_tok_s ttft_s follow_up_ttft_s request_s load_s bound_by",
    "command": "engine build argv env",
    "memory": "devices host pools peak",
}
LOCAL = ("llama-server", "-m", "GLM-5.1-UD-IQ2_M.gguf")
CASES = [
    ("fits", (*GLM, *ONE_CARD)),
    ("fits", (*GLM, "--hardware", "mac-studio-m3-ultra-512")),
    ("fits", (*GLM, "--no-gpu", "--ram", "256GiB")),
    ("tight", (*GLM, "--no-gpu", "--ram", "238GiB", "--ctx", "32K")),
    ("pages-from-disk", (*GLM, "--gpu", "24GiB", "--ram", "128GiB")),
    ("does-not-fit", (*GLM, "--gpu", "24GiB", "--ram", "16GiB", "--ctx", "max", "--pin", "load-mode=none")),
    ("invalid", ("check", *ONE_CARD, "--", *LOCAL, "-ngl", "47", "--mmap")),
    ("invalid", ("check", *ONE_CARD, "--", "llama-server", "-m", "unknown.gguf")),
    ("invalid", ("check", *ONE_CARD, "--", "llama-server", "--mlock")),
    ("fits", ("check", *ONE_CARD, "--", *LOCAL, "-ngl", "99", "-cmoe", "-c", "8192")),
    (
        "does-not-fit",
        ("check", "--gpu", "24GiB*2", "--ram", "128GiB", "--", *LOCAL, "-ngl", "99", "-c", "8192"),
    ),
]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    definitions = SCHEMA["$defs"]
    for key, names in PROMISED.items():
        assert set(names.split()) <= set(definitions[key]["required"])


@pytest.mark.parametrize(("verdict", "argv"), slow_but(CASES, CASES[0], CASES[3], *CASES[6:10]))
def test_answers_are_as_the_schema_says(cli: Cli, verdict: str, argv: tuple[str, ...]) -> None:
    place = 1 if argv[0] == "check" else len(argv)
    ended = cli(*argv[:place], "--json", *argv[place:])
    answer = ended.json
    Draft202012Validator(SCHEMA).validate(answer)
    assert answer["verdict"] == verdict
    assert ended.code == (0 if verdict in ("fits", "tight") else 3)
    assert ended.err == ""


@pytest.mark.slow
def test_the_schema_can_fail(cli: Cli) -> None:
    answer = cli(*GLM, *ONE_CARD, "--json").json
    answer["memory"]["devices"][0]["weights_bytes"] = 1.5
    assert not Draft202012Validator(SCHEMA).is_valid(answer)


@pytest.mark.slow
def test_sums_and_pools(cli: Cli) -> None:
    for _, argv in CASES[:5]:
        memory = cli(*argv, "--json").json["memory"]
        pools = {pool["name"]: pool for pool in memory["pools"]}
        for device, peak in zip(memory["devices"], memory["peak"]["devices"], strict=True):
            assert device["pool"] in pools
            assert peak >= device["total_bytes"]
        host = memory["host"]
        parts = ("weights_bytes", "context_bytes", "compute_bytes", "cache_bytes")
        assert host["total_bytes"] == sum(host[part] for part in parts)
