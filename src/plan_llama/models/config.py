"""From a Hugging Face config.json to the model that llama.cpp's converter would write for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plan_llama.errors import ModelError
from plan_llama.models.configs import FAMILIES
from plan_llama.models.configs.common import Config

_MAX_CONFIG_BYTES = 4 << 20
# Where the language model's part of a multimodal config is (ModelBase.load_hparams in conversion/base.py).
_TEXT_PARTS = ("llm_config", "lm_config", "language_config", "text_config")


def from_config(config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any], int]:
    """(architecture, hyperparameters, vocabulary) that the converter of b11434 writes for a config.

    The hyperparameters have the header's keys without the architecture prefix, and `tensors.*` for the optional
    tensors (`tables`). `name` is what an error calls the config. Raises ModelError for a config that is no
    language model's, or of an architecture that is not described here.
    """
    merged = dict(config)
    for part in _TEXT_PARTS:
        if isinstance(config.get(part), Mapping):
            merged |= config[part]
    c = Config(merged, name)
    wanted = _architectures(config)
    for hf_name in wanted:
        for family in FAMILIES:
            if found := family.get(hf_name):
                architecture, mapper = found
                hparams = mapper(c)
                architecture = architecture if isinstance(architecture, str) else architecture(c)
                return architecture, hparams, int(hparams.get("vocab_size") or c.number("vocab_size"))
    known = sum(map(len, FAMILIES))
    raise ModelError(
        f"{name}: no table for the architecture {wanted[0] if wanted else '(none named)'!r} "
        f"({known} are known)",
        hint="give a GGUF of the model: any architecture can be read from one",
    )


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The config's own name first, then its text part's (get_model_architecture in conversion/base.py)."""
    names: list[str] = []
    for part in (config, *(config.get(key) for key in _TEXT_PARTS)):
        found = part.get("architectures") if isinstance(part, Mapping) else None
        if isinstance(found, list) and found and isinstance(found[0], str):
            names.append(found[0][:80])
    return tuple(names)


def read_config(path: Path) -> dict[str, Any]:
    """A config.json. Raises ModelError where it cannot be read or is no JSON object."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > _MAX_CONFIG_BYTES:
        raise ModelError(f"{path}: larger than {_MAX_CONFIG_BYTES >> 20} MiB, which no config.json is")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({str(error)[:80]})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return config
