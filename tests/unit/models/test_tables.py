"""Tensor tables against captured headers of real-size models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plan_llama.errors import ProfileError
from plan_llama.models.spec import load
from plan_llama.models.tables import TRAIT, architectures, tensors
from tests import gguf_builder as build

# The optional tensors of each captured header, which its hyperparameters do not tell.
TRAITS: dict[str, tuple[str, ...]] = {
    "gemma-3-27b-q4_0": (),
    "glm-4.5-air-q4_k_m": ("attention_bias", "draft_embedding"),
    "glm-5.1-ud-iq2": (),
    "gpt-oss-20b-mxfp4": (),
    "llama-3.1-8b-q4_k_m": ("rope_freqs",),
    "qwen3-30b-a3b-q4_k_m": (),
}


@pytest.mark.parametrize("name", sorted(TRAITS))
def test_the_table_is_that_of_the_captured_header(name: str, tmp_path: Path) -> None:
    real = load(build.oracle_file(name, tmp_path))
    traits = {TRAIT + trait: True for trait in TRAITS[name]}
    found = tensors(real.architecture, {**real.hparams, **traits}, real.vocab_size)
    assert found == tuple((tensor.name, tensor.shape) for tensor in real.tensors)


def test_an_architecture_that_nobody_described_has_no_table() -> None:
    assert tensors("nobody-knows", {"block_count": 1}, 10) is None


LLAMA: dict[str, Any] = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
}


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_length": None},
        {"embedding_length": "wide"},
        {"block_count": 0},
        {"block_count": 1 << 60},
        {"feed_forward_length": (128,)},
        {"attention.head_count": 0},
        {"attention.head_count": True},
    ],
)
def test_hyperparameters_that_make_no_shape_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProfileError):
        tensors("llama", {**LLAMA, **change}, 100)


def test_sizes_may_differ_from_block_to_block() -> None:
    """Some models have other widths in some layers (OpenELM, Gemma 3n): the header then holds an array."""
    found = dict(tensors("llama", {**LLAMA, "feed_forward_length": (128, 256)}, 100) or ())
    assert found["blk.0.ffn_up.weight"] == (64, 128)
    assert found["blk.1.ffn_up.weight"] == (64, 256)


def test_every_architecture_has_one_builder() -> None:
    names = architectures()
    assert len(names) == len(set(names)) > 30
