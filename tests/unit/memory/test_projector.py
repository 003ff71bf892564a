"""What a projector takes, against what llama.cpp b11434 itself took for it (tests/data/projectors)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plan_llama.memory.projector import Projector
from plan_llama.memory.scheduler import CPU_KIND, CUDA_KIND
from plan_llama.models.images import Image, limits
from plan_llama.models.tables.towers import tower_tensors
from tests.projector_cases import Case, recorded, tower

CASES = tuple(recorded())
# simulated cards know flash attention for every head, CUDA does not (ggml_cuda_get_best_fattn_kernel, fattn.cu)
COMPARABLE = tuple(case for case in CASES if not (case.gpu and case.flash_attn and "llama-4" in case.model))


def _measured(case: Case) -> Iterator[tuple[Image, dict[str, int]]]:
    answer = case.answer
    size = answer["warmup_size"]
    yield Image(size, size), answer["compute"]
    for image, found in zip(case.images, answer["images"], strict=True):
        assert found["encoded"]
        yield image, found["compute"]


def test_every_tower_was_measured() -> None:
    kinds = {limits(tower(case.model, case.output).hparams) and _kind(case) for case in CASES}
    assert kinds == {
        *("gemma3", "gemma4v", "glm4v", "internvl", "kimik25", "kimivl", "llama4", "minimax_m3", "pixtral"),
        *("qwen2.5vl_merger", "qwen3vl_merger"),
    }
    assert {case.gpu for case in CASES} == {True, False}


def _kind(case: Case) -> str:
    return Projector(tower(case.model, case.output)).kind


@pytest.mark.parametrize("case", COMPARABLE, ids=lambda case: case.id)
def test_compute_buffers_are_the_engines(case: Case) -> None:
    """To the byte, on the projector's device and on the host, for the warm-up and for each size of image."""
    projector = Projector(tower(case.model, case.output))
    for image, measured in _measured(case):
        made = projector.compute(image, case.backend, flash_attn=case.flash_attn)
        assert (made.device_bytes, made.host_bytes) == case.device_and_host(measured), image


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_weights_are_the_engines(case: Case) -> None:
    """The engine adds up tensors without the padding of the buffer, which is under 64 bytes a tensor here."""
    spec = tower(case.model, case.output)
    (counted,) = case.answer["weights"].values()
    assert sum(tensor.nbytes for tensor in spec.tensors) == counted
    assert 0 <= Projector(spec).weights_bytes(CPU_KIND) - counted < 64 * len(spec.tensors)
    assert 0 <= Projector(spec).weights_bytes(CUDA_KIND) - counted < 1024 * len(spec.tensors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_image_sizes_and_tokens_are_the_engines(case: Case) -> None:
    hparams = tower(case.model, case.output).hparams
    found = limits(hparams, max_tokens=case.max_tokens)
    assert found is not None
    assert found.warmup.width == found.warmup.height == case.answer["warmup_size"]
    assert found.merge == case.answer["merge"]
    assert (found.largest.count > 1) <= case.answer["batches"]
    largest = case.answer["images"][0]
    assert largest["size"] == [found.largest.width, found.largest.height]
    assert largest["tokens"] == found.tokens
    area = found.largest.width * found.largest.height
    if found.dynamic:
        assert area <= case.answer["max_pixels"]
        assert area >= 0.96 * case.answer["max_pixels"]


@pytest.mark.parametrize(
    ("model", "output", "file_bytes"),
    [
        # sizes of files of these repositories, as their users list them
        ("glm-4.5v", "Q8_0", 994_457_504),  # ggml-org, mmproj-GLM-4.5V-Q8_0.gguf
        ("kimi-vl-a3b", "Q8_0", 618_098_624),  # ggml-org, mmproj-Kimi-VL-A3B-Thinking-2506-Q8_0.gguf
    ],
)
def test_modelled_files_have_the_published_size(model: str, output: str, file_bytes: int) -> None:
    """All but the header, which is 12 to 26 KB."""
    data = sum(-(-tensor.nbytes // 32) * 32 for tensor in tower(model, output).tensors)
    assert 8_000 < file_bytes - data < 32_000


def test_qwen35_9b_has_the_published_size() -> None:
    """bartowski's mmproj-Qwen_Qwen3.5-9B-bf16.gguf: the tower of its family, four thousand wide."""
    hparams = {**tower("qwen3.5-27b", "BF16").hparams, "vision.projection_dim": 4096}
    tensors = tower_tensors("qwen3vl_merger", hparams, "BF16")
    assert tensors is not None
    assert 8_000 < 921_704_896 - sum(-(-tensor.nbytes // 32) * 32 for tensor in tensors) < 32_000


def test_cuda_has_no_flash_attention_for_heads_of_88() -> None:
    """Llama 4's tower then keeps its scores: more memory than with it, and never less."""
    projector = Projector(tower("llama-4-scout", "F16"))
    image = Image(336, 336)
    assert not projector.flash_attn(CUDA_KIND)
    assert projector.flash_attn(CPU_KIND)
    with_scores = projector.compute(image, CUDA_KIND).device_bytes
    assert with_scores > projector.compute(image, CPU_KIND).device_bytes


def test_non_causal_models_cap_images_at_the_micro_batch() -> None:
    """server_context_impl::load_model: Gemma 4's largest image must fit into one micro-batch."""
    hparams = tower("gemma-4-31b", "F16").hparams
    free, capped = limits(hparams), limits(hparams, ubatch=512)
    assert free is not None
    assert capped is not None
    assert (free.tokens, capped.tokens) == (1120, 512)
    causal = limits({**hparams, "vision.projection_dim": 2560}, ubatch=512)
    assert causal is not None
    assert causal.tokens == 1120


def test_an_unknown_type_has_no_limits() -> None:
    assert limits({"projector_type": "mlp", "vision.patch_size": 14, "vision.image_size": 336}) is None
    assert limits({"projector_type": "gemma3"}) is None
