"""ik_llama.cpp's arguments and types, against what other files of its repository say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plan_llama.engines import ik_llama
from plan_llama.engines.commandline import parse
from plan_llama.engines.ik_reading import ik_settings
from plan_llama.memory.types import Settings
from plan_llama.models import ggml_types
from plan_llama.models.types import ModelSpec, Tensor
from tests.unit.engine_fixtures import glm, llama, machine

STATED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data/engines/ik_sizes.json").read_text(encoding="utf-8")
)
SERVER = "llama-server"
# They end its programs, connect to another, or want a text with a meaning.
NOT_ASKED = {"-h", "--version", "--rpc", "--draft-params", "--override-kv", "--chat-template-file"}
NOT_ASKED |= {"--allowlist-unicode-rule"}


def settings(*words: str, model: ModelSpec | None = None, cards: int = 1) -> Settings:
    parsed = parse((SERVER, "-m", "x.gguf", *words), table=ik_llama.flags())
    assert parsed.accepted, parsed.refused
    return ik_settings(parsed, model=model or llama(), machine=machine(cards)).settings


def test_block_sizes_are_those_of_its_own_package() -> None:
    assert len(STATED["sizes"]) == 47
    for name, (number, elements, size) in STATED["sizes"].items():
        kind = ggml_types.of_id(number)
        assert kind is not None, name
        assert (kind.name.lower(), kind.block_elements, kind.block_bytes) == (name, elements, size)
        assert kind.engine == "ik_llama.cpp"


def test_bits_per_weight_are_those_it_lists() -> None:
    assert len(STATED["bits_per_weight"]) == 28
    for name, bits in STATED["bits_per_weight"].items():
        kind = ggml_types.of_id(STATED["sizes"][name][0])
        assert kind is not None
        # within what it rounds to; it leaves the scale of a row out
        assert abs(8 * kind.block_bytes / kind.block_elements - bits) < 0.03, name


def test_a_row_has_its_scale() -> None:
    """ggml_row_size of that engine: row_meta_size + type_size * ne / blck_size."""
    kind = ggml_types.of_id(144)
    assert kind is not None
    assert (kind.name, kind.row_bytes) == ("iq4_ks", 4)
    assert Tensor("a", kind, (512, 10, 3)).nbytes == (2 * 136 + 4) * 30


def test_file_types_have_its_names() -> None:
    assert ggml_types.file_type_name(147) == "IQ2_KS"
    assert ggml_types.file_type_name(15) == "Q4_K_M"
    assert ggml_types.file_type_name(9999) is None


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (("-mla", "3"), True),
        (("-fmoe",), True),
        (("-ser", "6,1"), True),
        (("-ngl", "99", "-ot", "exps=CPU", "-fa"), False),
        (("--no-mmap",), False),
    ],
)
def test_its_commands_are_recognised(words: tuple[str, ...], ours: bool) -> None:
    assert ik_llama.meant((SERVER, *words)) is ours


def test_its_folder_is_recognised() -> None:
    assert ik_llama.meant(("/opt/ik_llama.cpp/build/bin/llama-server", "-m", "x"))
    assert not ik_llama.meant((SERVER, "-m", "/models/ik_llama/x.gguf"))


@pytest.mark.parametrize(
    "words",
    [
        ("-fmoe",),
        ("-mtp",),
        ("--draft-max", "4"),
        ("-sm", "row"),
        ("-fa", "maybe"),
        ("-ctk", "q3_0"),
        ("--load-mode", "none"),
        ("-kvu",),
    ],
)
def test_what_it_refuses(words: tuple[str, ...]) -> None:
    assert not parse((SERVER, *words), table=ik_llama.flags()).accepted


def test_defaults_are_its_own() -> None:
    found = settings()
    assert found.flash_attn
    assert not found.flash_attn_auto
    assert (found.parallel, found.kv_unified, found.load_mode) == (1, False, "mmap")
    assert found.gpu_layers == 33
    assert {"outputs-per-token", "no-window-cache", "one-pool"} <= found.older


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("-fa", "0"), "flash_attn", False),
        (("-no-fa",), "flash_attn", False),
        (("-rtr",), "load_mode", "none"),
        (("--no-mmap", "--mlock"), "load_mode", "mlock"),
        (("--mlock",), "load_mode", "mmap+mlock"),
        (("-ngl", "-1"), "gpu_layers", 33),
        (("-ngl", "10"), "gpu_layers", 10),
        (("-ctk", "q6_0"), "kv_type_k", "q8_0"),
        (("-ctx-ckpt", "4"), "ctx_checkpoints", 4),
        (("-cram", "0"), "cache_ram_bytes", 0),
        (("-c", "8192", "-np", "2"), "context_per_slot", 4096),
        (("-sm", "graph"), "split_mode", "layer"),
    ],
)
def test_arguments_mean_what_they_mean_there(words: tuple[str, ...], key: str, value: object) -> None:
    assert getattr(settings(*words), key) == value


def test_latent_attention_has_no_v_cache_type() -> None:
    found = settings("-ctk", "q8_0", model=glm())
    assert (found.kv_type_k, found.kv_type_v) == ("q8_0", "q8_0")


def test_ncmoe_counts_from_the_last_layer_that_has_experts() -> None:
    """src/llama-load-tensors.cpp: from n_layer - nextn_predict_layers - 1 down, layers with experts only."""
    kind = ggml_types.by_name("q4_K")
    tensors = tuple(
        Tensor(f"blk.{il}.ffn_{part}_exps.weight", kind, (256, 256, 8))
        for il in range(3, 8)
        for part in ("up", "down", "gate")
    )
    model = ModelSpec(
        name="m",
        architecture="glm-dsa",
        quant="Q4_K",
        tensors=tensors,
        hparams={"block_count": 8, "nextn_predict_layers": 1, "context_length": 4096},
        vocab_size=10,
        file_bytes=1,
    )
    [override] = settings("-ncmoe", "2", model=model).overrides
    import re

    on_cpu = {il for il in range(8) if re.search(override.pattern, f"blk.{il}.ffn_up_exps.weight")}
    assert on_cpu == {5, 6}


def test_its_own_parser_says_what_the_table_says() -> None:
    """Each spelling, and sixty written commands, as tests/engine/record_ik_commands.py asked it."""
    asked = json.loads((Path(__file__).parents[1] / "data/ik_llama/accepted.json").read_text("utf-8"))
    assert len(asked) > 900
    for program, words, error in asked:
        parsed = parse((program, *words), table=ik_llama.flags())
        assert parsed.accepted is not bool(error), (program, words, error)
    spelled = {(program, word) for program, words, _ in asked for word in words}
    for item in ik_llama.flags().arguments:
        for name in (*item.names, *item.negative):
            for program in item.programs:
                assert (program, name) in spelled or NOT_ASKED & {*item.names}, (program, name)
