"""Types and sizes of files that llama-quantize makes, against its own choices and against published files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plan_llama.errors import ModelError
from plan_llama.models import quant_mix
from plan_llama.models.ggml_types import by_name
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec, Tensor
from tests import gguf_builder as build

SNAPSHOTS = Path(__file__).parents[2] / "data" / "quant_snapshots"
MODELS = {
    entry["snapshot"]: entry for entry in tomllib.loads((SNAPSHOTS / "models.toml").read_text())["model"]
}


def shapes_of(model: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in model["outer"].items():
        yield name, tuple(shape)
    count = model["hparams"]["block_count"]
    pattern = model.get("pattern", "")
    for block in model["blocks"]:
        if kind := block.get("kind"):
            assert len(pattern) == count
            layers = [index for index in range(count) if pattern[index] == kind]
        else:
            first, last = map(int, block["layers"].split(":"))
            layers = list(range(count)[first:last])
        for index in layers:
            for name, shape in block.items():
                if name not in ("kind", "layers"):
                    yield f"blk.{index}.{name}.weight", tuple(shape)


def sections(snapshot: str) -> dict[str, tuple[str, dict[str, str]]]:
    """By mix: the type of most tensors, and the tensors that have another."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    mix = ""
    for line in (SNAPSHOTS / f"{snapshot}.schema").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            mix, kind = line[1:].split("] ")
            found[mix] = kind, {}
        elif line and not line.startswith("#"):
            name, kind = line.rsplit(" ", 1)
            found[mix][1][name] = kind
    return found


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    folder = tmp_path_factory.mktemp("headers")
    names = ("llama-3.1-8b-q4_k_m", "qwen3-30b-a3b-q4_k_m", "gemma-3-27b-q4_0", "granite-4.0-h-small-q4_k_m")
    more = ("deepseek-v3.1-iq2_xxs", "glm-4.5-air-q4_k_m", "qwen3.5-35b-a3b-q4_k_m", "gpt-oss-20b-mxfp4")
    return {name: load(build.oracle_file(name, folder)) for name in (*names, *more)}


def made(spec: ModelSpec, mix: str, *, imatrix: bool = False) -> tuple[Tensor, ...]:
    source = quant_mix.converted(spec.architecture, [(t.name, t.shape) for t in spec.tensors])
    return quant_mix.quantise(spec.architecture, spec.hparams, source, mix, imatrix=imatrix)


def test_there_is_a_model_for_every_snapshot() -> None:
    assert sorted(MODELS) == sorted(path.stem for path in SNAPSHOTS.glob("*.schema"))
    assert len(MODELS) == 12


@pytest.mark.parametrize("snapshot", sorted(MODELS))
def test_every_tensor_of_every_mix_has_the_type_that_llama_quantize_gives_it(snapshot: str) -> None:
    model = MODELS[snapshot]
    source = quant_mix.converted("", shapes_of(model), "F32")
    names = {tensor.name for tensor in source}
    mixes = sections(snapshot)
    assert len(mixes) == 33
    for mix, (usual, others) in mixes.items():
        assert quant_mix.DEFAULT_TYPES[mix] == usual
        assert others.keys() <= names, mix
        types = {
            tensor.name: tensor.type.name
            for tensor in quant_mix.quantise(model["architecture"], model["hparams"], source, mix)
        }
        assert types == {name: others.get(name, usual) for name in names}, mix


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-v3.1-iq2_xxs",
        "gemma-3-27b-q4_0",
        "glm-4.5-air-q4_k_m",
        "granite-4.0-h-small-q4_k_m",
        "llama-3.1-8b-q4_k_m",
        "qwen3-30b-a3b-q4_k_m",
        "qwen3.5-35b-a3b-q4_k_m",
    ],
)
def test_a_whole_file_has_the_types_that_llama_quantize_chose(
    name: str, captured: dict[str, ModelSpec]
) -> None:
    """With norms, routers and convolutions: these headers' types are those of `llama-quantize --dry-run`."""
    spec = captured[name]
    assert {tensor.name: tensor for tensor in made(spec, spec.quant)} == {t.name: t for t in spec.tensors}


# Bytes of files with llama.cpp's mixes, made with an importance matrix, as Hugging Face lists them. One header
# serves all files of a repository, so what a file has beside its tensors must be one number.
LLAMA_3_1_8B = {  # https://huggingface.co/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF/tree/bf5b95e
    "IQ2_M": 2948285856,
    "Q2_K": 3179136416,
    "IQ3_XS": 3518752160,
    "Q3_K_S": 3664504224,
    "IQ3_M": 3784828320,
    "Q3_K_M": 4018922912,
    "Q3_K_L": 4321961376,
    "IQ4_XS": 4447667616,
    "IQ4_NL": 4677993888,
    "Q4_K_S": 4692673952,
    "Q4_K_M": 4920739232,
    "Q5_K_S": 5599298976,
    "Q5_K_M": 5732992416,
    "Q6_K": 6596011424,
    "Q8_0": 8540775840,
}
QWEN3_30B_A3B = {  # https://huggingface.co/unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF/tree/b17cb02, same shapes
    "Q2_K": 11258612896,
    "Q3_K_S": 13292471456,
    "Q3_K_M": 14711850144,
    "IQ4_NL": 17310784672,
    "Q4_0": 17379990688,
    "Q4_1": 19192503456,
    "Q4_K_S": 17456012448,
    "Q4_K_M": 18556689568,
    "Q5_K_S": 21080513696,
    "Q5_K_M": 21725584544,
    "Q6_K": 25092535456,
    "Q8_0": 32483935392,
}


@pytest.mark.parametrize(
    ("name", "published"),
    [("llama-3.1-8b-q4_k_m", LLAMA_3_1_8B), ("qwen3-30b-a3b-q4_k_m", QWEN3_30B_A3B)],
)
def test_sizes_are_those_of_published_files(
    name: str, published: dict[str, int], captured: dict[str, ModelSpec]
) -> None:
    spec = captured[name]
    sizes = {
        mix: quant_mix.file_size(made(spec, mix, imatrix=True), vocab_size=spec.vocab_size)
        for mix in published
    }
    headers = {published[mix] - size.data_bytes for mix, size in sizes.items()}
    assert len(headers) == 1
    header = headers.pop()
    assert 5_000_000 < header < 8_000_000  # the tokenizer
    for size in sizes.values():
        assert size.estimated
        assert size.header_bytes == pytest.approx(header, abs=3_000_000)


def test_a_header_that_was_read_gives_the_size_to_the_byte(captured: dict[str, ModelSpec]) -> None:
    spec = captured["llama-3.1-8b-q4_k_m"]
    tensors = made(spec, "Q4_K_M")
    assert spec.path is not None
    from plan_llama.models import gguf

    infos = quant_mix.file_size(tensors, vocab_size=0, vocabulary_bytes=0).header_bytes
    metadata = gguf.read_file(Path(spec.path)).data_offset - infos
    size = quant_mix.file_size(tensors, vocab_size=spec.vocab_size, vocabulary_bytes=metadata)
    assert not size.estimated
    assert size.total_bytes == spec.file_bytes


def test_gpt_oss_keeps_its_experts_as_they_are_published(captured: dict[str, ModelSpec]) -> None:
    """The MXFP4 file of https://huggingface.co/ggml-org/gpt-oss-20b-GGUF has 12,109,566,624 bytes."""
    spec = captured["gpt-oss-20b-mxfp4"]
    size = quant_mix.file_size(made(spec, "MXFP4_MOE"), vocab_size=spec.vocab_size)
    assert 12_109_566_624 - size.data_bytes == pytest.approx(size.header_bytes, abs=6_000_000)


def test_an_importance_matrix_changes_some_types(captured: dict[str, ModelSpec]) -> None:
    """What llama-quantize keeps better without one: the first eighth of ffn_down, and the other way round."""
    spec = captured["gemma-3-27b-q4_0"]

    def first_down(mix: str, imatrix: bool) -> str:
        types = {tensor.name: tensor.type.name for tensor in made(spec, mix, imatrix=imatrix)}
        return types["blk.0.ffn_down.weight"]

    assert [first_down("Q4_0", given) for given in (False, True)] == ["q4_0", "q4_1"]
    assert [first_down("IQ4_XS", given) for given in (False, True)] == ["q5_K", "iq4_xs"]
    assert [first_down("IQ3_XXS", given) for given in (False, True)] == ["q4_K", "iq3_xxs"]


@pytest.mark.parametrize(
    ("mix", "needed"),
    [
        ("IQ1_S", True),
        ("IQ2_M", True),
        ("Q2_K_S", True),
        ("Q2_K", False),
        ("IQ3_XXS", True),
        ("Q4_K_M", False),
    ],
)
def test_which_mixes_need_an_importance_matrix(
    mix: str, needed: bool, captured: dict[str, ModelSpec]
) -> None:
    """tensor_requires_imatrix of b11434; IQ3_S and IQ4_XS files can be made without one."""
    assert quant_mix.needs_imatrix(made(captured["llama-3.1-8b-q4_k_m"], mix), mix) is needed


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("q4_k", "Q4_K_M"),
        ("Q3_K", "Q3_K_M"),
        ("q5_K", "Q5_K_M"),
        ("mxfp4_moe", "MXFP4_MOE"),
        ("NVFP4", None),
        ("", None),
    ],
)
def test_names_are_those_that_llama_quantize_takes(text: str, name: str | None) -> None:
    assert quant_mix.mix_name(text) == name


def test_the_file_is_in_the_order_that_llama_quantize_writes() -> None:
    source = [
        Tensor(name, by_name("f16"), (256, 2))
        for name in (
            "blk.10.ffn_up.weight",
            "token_embd.weight",
            "blk.2.ffn_up.weight",
            "blk.2.attn_q.weight",
        )
    ]
    hparams = {"block_count": 11, "attention.head_count": 1}
    names = [tensor.name for tensor in quant_mix.quantise("llama", hparams, source, "Q8_0")]
    assert names == [
        "token_embd.weight",
        "blk.2.attn_q.weight",
        "blk.2.ffn_up.weight",
        "blk.10.ffn_up.weight",
    ]


@pytest.mark.parametrize(
    ("mix", "tensor", "hparams", "said"),
    [
        ("UD-IQ2_M", "blk.0.ffn_up.weight", {}, "makes no UD-IQ2_M"),
        ("NVFP4", "blk.0.ffn_up.weight", {}, "makes no NVFP4"),
        ("Q1_0", "blk.0.ffn_up.weight", {}, "192 elements, no multiple of 128"),
        ("IQ3_XS", "blk.7.ffn_up_exps.weight", {"expert_count": 8}, "in none of the 2 blocks"),
        ("Q4_K_M", "blk.0.ffn_up.weight", {"attention.head_count": "many"}, "must be a whole number"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    mix: str, tensor: str, hparams: dict[str, Any], said: str
) -> None:
    source = [Tensor(tensor, by_name("f16"), (192, 4))]
    keys = {"block_count": 2, "attention.head_count": 4, **hparams}
    with pytest.raises(ModelError, match=said) as raised:
        quant_mix.quantise("llama", keys, source, mix)
    assert "\n" not in raised.value.line()


def test_the_command_is_llama_quantizes() -> None:
    assert quant_mix.command("in.gguf", "out.gguf", "q4_k", imatrix="i.gguf", requantise=True) == (
        *("llama-quantize", "--allow-requantize", "--imatrix", "i.gguf"),
        *("in.gguf", "out.gguf", "Q4_K_M"),
    )
