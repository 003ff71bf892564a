"""A model and machines to read and write commands for."""

from __future__ import annotations

import gzip
import re
from functools import cache
from pathlib import Path

from plan_llama.hardware.types import Backend, Cpu, Gpu, Machine, Ram
from plan_llama.models.types import ModelSpec

GIB = 1024**3
HEADERS = Path(__file__).parents[1] / "data/oracle/models"


def glm() -> ModelSpec:
    """The header values of GLM-5.1 as its GGUF has them."""
    return ModelSpec(
        name="GLM-5.1",
        architecture="glm-dsa",
        quant="UD-IQ2_M",
        tensors=(),
        hparams={
            "block_count": 79,
            "nextn_predict_layers": 1,
            "context_length": 202752,
            "attention.head_count": 64,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
        },
        vocab_size=154880,
        file_bytes=236 * 10**9,
    )


def llama() -> ModelSpec:
    """The header values of Llama 3.1 8B."""
    return ModelSpec(
        name="Llama 3.1 8B",
        architecture="llama",
        quant="Q4_K_M",
        tensors=(),
        hparams={
            "block_count": 32,
            "context_length": 131072,
            "embedding_length": 4096,
            "attention.head_count": 32,
        },
        vocab_size=128256,
        file_bytes=5 * 10**9,
    )


def machine(cards: int = 1, *, backend: Backend = "cuda", integrated: bool = False) -> Machine:
    """A machine with so many 24 GiB cards."""
    gpu = Gpu(
        name="RTX 3090",
        vendor="nvidia",
        backend=backend,
        integrated=integrated,
        total_bytes=24 * GIB,
        free_bytes=23 * GIB,
    )
    return Machine(
        name="test",
        gpus=(gpu,) * cards,
        ram=Ram(total_bytes=256 * GIB, available_bytes=251 * GIB),
        cpu=Cpu(physical_cores=16, logical_cores=32),
    )


@cache
def tensor_names(model: str) -> tuple[str, ...]:
    """The block tensors' names of a real header (tests/data/oracle/models)."""
    header = gzip.decompress((HEADERS / f"{model}.hdr.gz").read_bytes())
    return tuple(name.decode() for name in re.findall(rb"blk\.\d+\.[a-z0-9_.]+\.(?:weight|bias)", header))
