"""The vectors of tests/data/vllm/golden.md, every one, as they stand there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from plan_llama.memory.vllm import kv
from plan_llama.memory.vllm.attention import Backend, cache_layers, latent_bytes
from plan_llama.memory.vllm.backends import backend_for
from plan_llama.memory.vllm.budget import stages
from plan_llama.memory.vllm.weights import Ranks, weights_bytes
from plan_llama.solver.vllm.rules import refusals
from plan_llama.units import GIB
from tests.unit.vllm.recorded import DATA, checkpoint, reading

TEXT = (DATA / "golden.md").read_text()
# How the tables call the models of configs.json.
NAMES = {
    "llama-3.1-8B": "llama-3.1-8b",
    "llama-3.3-70B": "llama-3.3-70b",
    "qwen3-30b-a3b": "qwen3-30b-a3b",
    "gpt-oss-20b": "gpt-oss-20b",
    "gpt-oss-120b": "gpt-oss-120b",
    "deepseek-v3": "deepseek-r1 fp8",
    "gemma3-27b": "gemma-3-27b text",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "glm-5.1 bf16": "glm-5.1 bf16",
    "glm-5.1 fp8": "glm-5.1 fp8",
    "qwen3-0.6B": "qwen3-0.6b",
}


def rows(part: str) -> list[list[str]]:
    """The cells of a part's table, without its heading."""
    text = TEXT.partition(f"\n{part}. ")[2]
    text = re.split(r"\nE\d\. |\nWorked", text)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def model_of(cell: str) -> str:
    return next(name for key, name in NAMES.items() if cell.startswith(key))


def case(model: str, capability: str, gib: float, gpus: int, args: Sequence[str]) -> dict[str, object]:
    return {
        "model": model,
        "capability": capability,
        "gib": gib,
        "gpus": gpus,
        "stage": 0,
        "args": list(args),
    }


def capacity(found: dict[str, object], available: Sequence[int], *, block: int | None = None) -> kv.Capacity:
    setup = reading(found).setup
    assert setup.card is not None
    backend = backend_for(setup.checkpoint.spec, setup.card, setup.kv_dtype)
    layers = cache_layers(setup.checkpoint.spec, setup.start.ranks, backend)
    need = kv.Request(
        max_model_len=setup.start.max_model_len,
        in_flight_tokens=2 * setup.start.max_num_batched_tokens,
        context_parallel=setup.start.ranks.context,
    )
    return kv.capacity(kv.groups_of(layers, block or backend.block_size), available, need)


@pytest.mark.parametrize("cells", rows("E1"), ids=lambda cells: cells[0])
def test_e1_ten_gib_at_block_16(cells: list[str]) -> None:
    name, weights, _, blocks, tokens, concurrency = cells
    tensor = 2 if "TP 2" in name else 4
    args = ["--kv-cache-memory-bytes", "10G", "--max-model-len", "32768", "-tp", str(tensor)]
    found = case(model_of(name), "9.0", 139.8, 8, args)
    setup = reading(found).setup
    assert setup.card is not None
    backend = backend_for(setup.checkpoint.spec, setup.card, setup.kv_dtype)
    ours = stages(setup.checkpoint, setup.start, setup.card, backend)[0].weights_bytes / GIB
    # GiB with three places: of quantised ones some KiB of scales are counted beside
    assert f"{ours:.3f}" == weights.split(" ")[0]
    if blocks:
        got = capacity(found, [10 * GIB], block=16)
        assert (got.blocks, got.tokens, f"{got.concurrency:.2f}") == (int(blocks), int(tokens), concurrency)


@pytest.mark.parametrize("cells", rows("E2"), ids=lambda cells: f"{cells[0]} {cells[1]}")
def test_e2_thirty_gib(cells: list[str]) -> None:
    name, where, block, blocks, tokens, concurrency = cells
    model, tensor = (part.strip() for part in name.rsplit(",", 1))
    capability, _, dtype = where.partition(",")
    capability = capability.split(" ")[0]
    for kv_dtype in ("auto", "fp8") if "auto or fp8" in dtype else (dtype.strip() or "auto",):
        args = ["--kv-cache-memory-bytes", "30G", "-tp", tensor, "--kv-cache-dtype", kv_dtype]
        found = case(model_of(model), capability, 139.8 if capability == "9.0" else 178.4, 8, args)
        got = capacity(found, [30 * GIB])
        assert (got.blocks, got.tokens) == (int(blocks), int(tokens))
        assert f"{got.concurrency:.2f}" == concurrency.split(" ")[0]
        setup = reading(found).setup
        assert setup.card is not None
        assert backend_for(setup.checkpoint.spec, setup.card, kv_dtype).block_size == int(block)


E3 = {
    "TP4": (Ranks(tensor=4),),
    "TP8": (Ranks(tensor=8),),
    "TP8 + EP": (Ranks(tensor=8, expert=True),),
    "TP16": (Ranks(tensor=16),),
    "TP8 PP2": (Ranks(tensor=8, pipeline=2),),
    "DP8 + EP": (Ranks(data=8, expert=True),),
    "TP8 DP2 + EP": (Ranks(tensor=8, data=2, expert=True),),
}


def test_e3_weights_of_glm() -> None:
    compared = 0
    for cells in rows("E3"):
        found = checkpoint(f"glm-5.1 {cells[0].lower()}")
        for (ranks,), cell in zip(E3.values(), cells[1:], strict=True):
            for stage, text in enumerate(filter(None, cell.split(" / "))):
                ours = weights_bytes(found, ranks, stage=stage) / GIB
                assert f"{ours:.3f}" == text, (cells[0], ranks)
                compared += 1
    assert compared == 12


CARDS = {"H200": ("9.0", 139.8), "B200": ("10.0", 178.4), "B300": ("10.3", 268.0), "H100": ("9.0", 79.1)}


@pytest.mark.parametrize(
    ("card", "overhead", "model", "args", "tokens", "concurrency"),
    [
        ("H200", 8.2, "fp8", "-tp 8 --kv-cache-dtype fp8", "553216", "2.73"),
        ("H200", 8.2, "fp8", "-tp 8 -dcp 8 --kv-cache-dtype fp8", "4425728", "21.83"),
        ("B200", 8.2, "fp8", "-tp 8", "1306240", "6.44"),
        ("B300", 8.2, "fp8", "-tp 4", "1225152", "6.04"),
        ("H100", 6.0, "fp8", "-tp 16 --nnodes 2 --kv-cache-dtype fp8", "372544", "1.84"),
        ("H100", 6.0, "fp8", "-tp 8 -pp 2 --nnodes 2 --kv-cache-dtype fp8", "724608", "3.57"),
    ],
)
def test_e4_whole_runs(
    card: str, overhead: float, model: str, args: str, tokens: str, concurrency: str
) -> None:
    assert tokens in TEXT
    capability, gib = CARDS[card]
    found = case(f"glm-5.1 {model}", capability, gib, 8, args.split())
    setup = reading(found).setup
    assert refusals(setup) == []
    total = int(gib * GIB)
    ranks = setup.start.ranks
    room = [
        int(0.92 * total - weights_bytes(setup.checkpoint, ranks, stage=stage) - overhead * GIB)
        for stage in range(ranks.pipeline)
    ]
    got = capacity(found, room)
    assert (str(got.tokens), f"{got.concurrency:.2f}") == (tokens, concurrency)


def test_e4_bf16_in_two_stages() -> None:
    """The table says `kv fp8`; its tokens are those of a 16-bit cache, and vLLM gives 1005568 with FP8 (recorded)."""
    found = case("glm-5.1 bf16", "9.0", 139.8, 8, ["-tp", "8", "-pp", "2", "--nnodes", "2"])
    setup = reading(found).setup
    weights = weights_bytes(setup.checkpoint, setup.start.ranks, stage=1)
    got = capacity(found, [1 << 60, int(0.92 * 139.8 * GIB - weights - 8.2 * GIB)])
    assert "617152 tokens, 3.04x" in TEXT
    assert (got.tokens, f"{got.concurrency:.2f}") == (617152, "3.04")


def test_e4_two_small_cards() -> None:
    found = case("llama-3.1-8b", "8.6", 23.6, 2, ["-tp", "2", "--max-model-len", "32768"])
    setup = reading(found).setup
    room = int(0.92 * 23.6 * GIB - weights_bytes(setup.checkpoint, setup.start.ranks) - 2 * GIB)
    got = capacity(found, [room])
    assert "200416 tokens, 6.12x, 256 seqs, 2048 batch" in TEXT
    assert (got.tokens, f"{got.concurrency:.2f}") == (200416, "6.12")
    assert (setup.start.max_num_seqs, setup.start.max_num_batched_tokens) == (256, 2048)


def test_e4_the_longest_context_of_a_small_share() -> None:
    found = case("glm-5.1 fp8", "9.0", 139.8, 8, ["-tp", "8", "--kv-cache-dtype", "fp8"])
    setup = reading(found).setup
    backend = Backend(
        name="FLASHMLA_SPARSE",
        kv_dtype="fp8_ds_mla",
        block_size=64,
        latent_bytes=latent_bytes(setup.checkpoint.spec, "fp8_ds_mla"),
    )
    room = int(0.72 * 139.8 * GIB - weights_bytes(setup.checkpoint, setup.start.ranks) - 8.2 * GIB)
    groups = kv.groups_of(cache_layers(setup.checkpoint.spec, setup.start.ranks, backend), 64)
    assert "length 64704" in TEXT
    assert kv.longest(groups, [room], kv.Request(max_model_len=202752)) == 64704


@pytest.mark.parametrize(
    ("capability", "args", "wanted"),
    [
        ("9.0", "-tp 6", "vllm-tp-heads"),
        ("8.0", "-tp 8", "vllm-no-attention-backend"),
        ("8.9", "-tp 8", "vllm-no-attention-backend"),
    ],
)
def test_e4_refusals(capability: str, args: str, wanted: str) -> None:
    found = case("glm-5.1 fp8", capability, 79.2, 8, args.split())
    assert wanted in [item.id for item in refusals(reading(found).setup)]


def test_e4_eight_h100_have_no_memory_left() -> None:
    setup = reading(case("glm-5.1 fp8", "9.0", 79.1, 8, ["-tp", "8"])).setup
    assert refusals(setup) == []
    assert setup.card is not None
    backend = backend_for(setup.checkpoint.spec, setup.card, "auto")
    assert stages(setup.checkpoint, setup.start, setup.card, backend)[0].kv_bytes() < 0


def test_rows_of_a_latent_cache() -> None:
    spec = checkpoint("glm-5.1 fp8").spec
    found = {name: latent_bytes(spec, name) for name in ("auto", "fp8", "fp8_ds_mla", "nvfp4_ds_mla")}
    assert found == {"auto": 1152, "fp8": 576, "fp8_ds_mla": 656, "nvfp4_ds_mla": 352}


def test_a_block_for_drafting_keeps_as_much_as_a_layer() -> None:
    """With MTP a token takes 79/78 of what it takes without."""
    spec = checkpoint("glm-5.1 fp8").spec
    backend = Backend(name="FLASHMLA_SPARSE", kv_dtype="fp8_ds_mla", block_size=64, latent_bytes=656)
    plain, drafting = (
        sum(layer.token_bytes for layer in cache_layers(spec, Ranks(tensor=8), backend, drafts=drafts))
        for drafts in (False, True)
    )
    assert plain == 61464
    assert drafting * 78 == plain * 79
