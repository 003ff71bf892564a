"""The tensors of a model, by name and shape, from its hyperparameters: one small builder per architecture.

Names and shapes are those of `load_arch_tensors` in llama.cpp b11434 (src/models/*.cpp), as its own converter
writes them. A builder is a generator over `Shapes`; the pieces that architectures share are in `pieces`. To add
an architecture, write its builder in the file of its family, name it in that file's BUILDERS, and, for a new
file, name the file in _FAMILIES.

A header does not say which optional tensors a file has. Hyperparameters named `tensors.*` say it here (`tied`,
`attention_bias`, …: see `Shapes.has`); they are no part of a GGUF and are not written to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from plan_llama.models.tables.pieces import TRAIT, Builder, Named, Shapes

__all__ = ["TRAIT", "architectures", "tensors"]


# names of the files; imported in this order until one has the architecture
_FAMILIES = ("llama", "qwen", "gemma", "glm", "phi", "mla", "hybrid", "recurrent", "sparse")


def _families() -> Iterator[Mapping[str, Builder]]:
    for name in _FAMILIES:
        yield import_module(f"{__name__}.{name}").BUILDERS


def tensors(architecture: str, hparams: Mapping[str, Any], vocab: int) -> tuple[Named, ...] | None:
    """Every tensor of a model in file order; None for an architecture that is not described here.

    Raises ProfileError where a hyperparameter is missing or makes no shape.
    """
    for family in _families():
        if build := family.get(architecture):
            return tuple(build(Shapes(hparams, vocab)))
    return None


def architectures() -> tuple[str, ...]:
    """The names of all architectures that are described here, sorted."""
    return tuple(sorted(name for family in _families() for name in family))
