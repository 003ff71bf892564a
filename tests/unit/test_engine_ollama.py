"""What Ollama starts, against the cases of its own tests (server/sched_test.go, v0.33.0-rc2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plan_llama.engines import modelfile, ollama
from plan_llama.engines.ollama_facts import facts
from plan_llama.engines.ollama_runner import automatic_batch, predicted_bytes, runner
from plan_llama.hardware.types import Backend, Gpu, Machine
from tests.unit.engine_fixtures import GIB, glm, llama, machine

GB = 10**9
MIB = 1024**2


def card(free_bytes: int, backend: Backend = "cuda", *, integrated: bool = False) -> Gpu:
    return Gpu(
        name="a card", backend=backend, integrated=integrated, total_bytes=free_bytes, free_bytes=free_bytes
    )


def holding(*cards: Gpu, os: str = "linux") -> Machine:
    return replace(machine(), gpus=cards, os=os)


# context, predicted, available, flash attention, cards, num_batch: TestAutomaticGenerationBatch
@pytest.mark.parametrize(
    ("tokens", "predicted", "free", "flash_attn", "cards", "batch"),
    [
        (4096, 0, 0, "auto", (), 512),
        (32768, 0, 0, "auto", (), 1024),
        (131072, 8 * GIB, 14 * GIB, "auto", (), 2048),
        (131072, 9 * GIB, 14 * GIB, "auto", (), 1024),
        (131072, 8 * GIB, 11 * GIB, "auto", (), 1024),
        (32768, 8500 * MIB, 11 * GIB, "auto", (), 512),
        (131072, 8 * GIB, 14 * GIB, "off", (card(14 * GIB),), 512),
        (131072, 3 * GIB, 6 * GIB, "off", (card(6 * GIB),), 256),
    ],
)
def test_automatic_batch(
    tokens: int, predicted: int, free: int, flash_attn: str, cards: tuple[Gpu, ...], batch: int
) -> None:
    assert automatic_batch(tokens, predicted, free, cards, flash_attn) == batch


def started(
    text: str, here: Machine, env: dict[str, str] | None = None, file_bytes: int = 8 * GB
) -> list[str]:
    """The command line for a model that is expected to take no more than its file."""
    model = replace(llama(), file_bytes=file_bytes, hparams={"block_count": 20}, path="/m.gguf")
    return list(runner(modelfile.read(f"FROM x\n{text}"), env or {}, model=model, machine=here).argv)


def value(argv: list[str], flag: str) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else None


# TestSelectLlamaServerPlacement
def test_one_card_that_is_large_enough_gets_everything() -> None:
    argv = started("", holding(card(10 * GB), card(20 * GB)))
    assert (value(argv, "--device"), value(argv, "--main-gpu")) == ("CUDA1", "0")


def test_spreading_takes_all_cards() -> None:
    argv = started("", holding(card(10 * GB), card(20 * GB)), {"OLLAMA_SCHED_SPREAD": "1"})
    assert value(argv, "--device") is None
    assert value(argv, "--split-mode") is None


def test_main_gpu_counts_among_the_cards_of_a_kind() -> None:
    cards = (card(10 * GB), card(20 * GB, "rocm"), card(24 * GB, "rocm"))
    assert value(started("PARAMETER main_gpu 1", holding(*cards)), "--device") == "ROCm1"


def test_a_discrete_card_comes_before_an_integrated_one() -> None:
    cards = (card(32 * GB, "vulkan", integrated=True), card(20 * GB, "vulkan"))
    assert value(started("", holding(*cards)), "--device") == "Vulkan1"


def test_the_kind_with_the_most_memory_is_taken() -> None:
    cards = (card(10 * GB), card(12 * GB, "rocm"), card(12 * GB, "rocm"))
    assert value(started("", holding(*cards), file_bytes=40 * GB), "--device") == "ROCm0,ROCm1"


# TestDisableMmapDefaultReason, TestAppendLoadModeArgs
@pytest.mark.parametrize(
    ("os", "backend", "text", "file_bytes", "mode"),
    [
        ("windows", "cuda", "PARAMETER use_mmap true", 8 * GB, None),
        ("linux", "cuda", "PARAMETER num_gpu 0", 8 * GB, "none"),
        ("windows", "cuda", "", 8 * GB, "none"),
        ("darwin", "metal", "PARAMETER num_gpu 10", 8 * GB, "none"),
        ("darwin", "metal", "PARAMETER num_gpu 21", 8 * GB, None),
        ("darwin", "metal", "", 30 * GB, "none"),
        ("darwin", "metal", "", 10 * GB, None),
        ("linux", "cuda", "", 8 * GB, None),
    ],
)
def test_mapping(os: str, backend: Backend, text: str, file_bytes: int, mode: str | None) -> None:
    argv = started(text, holding(card(20 * GB, backend), os=os), file_bytes=file_bytes)
    assert value(argv, "--load-mode") == mode


def test_an_integrated_card_is_read_for_directly() -> None:
    argv = started("PARAMETER use_mmap true", holding(card(20 * GB, "rocm", integrated=True)))
    assert value(argv, "--load-mode") == "dio"


def test_no_card_is_used_with_num_gpu_0() -> None:
    assert value(started("PARAMETER num_gpu 0", holding(card(20 * GB))), "--device") == "none"


def test_context_is_of_a_slot_and_capped() -> None:
    model = replace(llama(), path="/m.gguf")
    env = {"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_KV_CACHE_TYPE": "Q8_0", "OLLAMA_FLASH_ATTENTION": "1"}
    made = runner(modelfile.read("FROM x\nPARAMETER num_ctx 8192"), env, model=model, machine=machine())
    argv = list(made.argv)
    assert value(argv, "-c") == "16384"
    assert value(argv, "--cache-type-v") == "q8_0"
    assert value(argv, "--flash-attn") == "on"
    made = runner(modelfile.read("FROM x\nPARAMETER num_ctx 200000"), {}, model=model, machine=machine())
    assert (made.context, made.capped) == (131072, 200000)


@pytest.mark.parametrize(("total", "context"), [(12, 4096), (24, 32768), (48, 262144)])
def test_automatic_context(total: int, context: int) -> None:
    assert facts().automatic_context(total * GIB) == context


def test_some_architectures_have_one_slot() -> None:
    model = replace(llama(), architecture="qwen35moe", path="/m.gguf")
    made = runner(modelfile.read("FROM x"), {"OLLAMA_NUM_PARALLEL": "4"}, model=model, machine=machine())
    assert (made.parallel, made.one_slot) == (1, True)


def test_prediction_is_by_heads() -> None:
    """2 × layers × least KV heads × (embedding / most heads) × context × 2 bytes, and the file."""
    model = replace(llama(), hparams={**llama().hparams, "attention.head_count_kv": [8] * 32})
    assert predicted_bytes(model, 8192) == 5 * 10**9 + 2 * 32 * 8 * 128 * 8192 * 2


def test_names_are_ollamas() -> None:
    assert ollama.model_name(glm()) == "glm-5.1:ud-iq2_m"
    assert ollama.model_name(replace(glm(), name="Ünïcode (x)!", quant="")) == "n-code-x:local"
