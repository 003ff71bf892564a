"""What llama.cpp's converter (conversion/*.py, b11434) writes in a header for a Hugging Face config.json.

A mapper is a function from a `Config` to hyperparameters under the header's keys without the architecture
prefix, with `tensors.*` for the optional tensors that the published weights have (see `tables`). To add one,
write it in the file of its family, name it in that file's MAPPERS under the config's `architectures` entry, and,
for a new file, name the file in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Mapping

from plan_llama.models.configs import gemma, glm, hybrid, latent, llama, others, qwen, recurrent, sparse
from plan_llama.models.configs.common import Architecture, Mapper

__all__ = ["FAMILIES"]

FAMILIES: tuple[Mapping[str, tuple[Architecture, Mapper]], ...] = (
    llama.MAPPERS,
    qwen.MAPPERS,
    gemma.MAPPERS,
    glm.MAPPERS,
    others.MAPPERS,
    latent.MAPPERS,
    hybrid.MAPPERS,
    recurrent.MAPPERS,
    sparse.MAPPERS,
)
