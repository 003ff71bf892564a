"""What a command says of drafting: a model of its own that drafts, and how many tokens are verified at once.

Source: common_base_params_to_speculative, common_speculative_n_max (common/speculative.cpp), server_output_limits
(tools/server/server-context.cpp) and common/arg.cpp, b11434.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from plan_llama.engines import overrides as placing
from plan_llama.engines.flags import FlagTable
from plan_llama.memory.types import DRAFT_TOKENS, Settings
from plan_llama.models.types import ModelSpec

if TYPE_CHECKING:
    from plan_llama.engines.command_settings import Reading

# Tokens that each kind drafts at most, by the argument that sets it and the default (common_params_speculative).
_DRAFTED = {
    "draft-simple": ("--spec-draft-n-max", DRAFT_TOKENS),
    "draft-eagle3": ("--spec-draft-n-max", DRAFT_TOKENS),
    "draft-dflash": ("--spec-draft-n-max", DRAFT_TOKENS),
    "draft-dspark": ("--spec-draft-n-max", DRAFT_TOKENS),
    "ngram-simple": ("--spec-ngram-simple-size-m", 48),
    "ngram-map-k": ("--spec-ngram-map-k-size-m", 48),
    "ngram-map-k4v": ("--spec-ngram-map-k4v-size-m", 48),
    "ngram-mod": ("--spec-ngram-mod-n-max", 64),
    "ngram-cache": ("", 8),
}


def kinds(given: Reading) -> frozenset[str]:
    """What --spec-type names; it adds up over the command."""
    named = [item for item in given.usable if item.argument and "--spec-type" in item.argument.names]
    return frozenset(kind for item in named if item.values for kind in item.values[0].split(","))


def verified_tokens(given: Reading) -> int:
    """The longest draft, of anything but the model's own block, that one batch verifies in a slot."""
    if not given.serves:
        return 0
    found = kinds(given)
    drafted = [given.number(flag, default) for kind, (flag, default) in _DRAFTED.items() if kind in found]
    return max(0, 0, *drafted)


def kept_tokens(given: Reading) -> int:
    """Tokens of a draft for which the states of recurrent layers are kept, so that they can be taken back
    (need_n_rs_seq, common/common.h): of drafters that read the model's own hidden states."""
    found = kinds(given) & {"draft-eagle3", "draft-dflash", "draft-dspark"}
    return max(0, given.number("--spec-draft-n-max", DRAFT_TOKENS)) if found and given.serves else 0


def counted(given: Reading) -> ModelSpec | None:
    """The model that drafts, where one is loaded and its header is known; one that runs as a block of the other
    (--spec-type draft-mtp) is not described."""
    loaded = given.serves and "-md" in given.last and "draft-mtp" not in kinds(given)
    return given.model.draft if loaded else None


def is_idle(given: Reading) -> bool:
    """Whether a model that drafts is loaded that drafts nothing: no kind is named, as builds with --spec-type want it
    (only a file that is made for drafting names its own)."""
    known = FlagTable.load(given.parsed.build or None).lookup("--spec-type", given.parsed.program)
    return known is not None and not kinds(given) - {"none"}


def read(given: Reading, model: ModelSpec, settings: Settings, devices: tuple[int, ...]) -> Settings:
    """The settings of the model that drafts: the command's own, but for what has an argument for it."""
    named = given.text("-devd")
    own = devices if named is None else given.listed_devices("--spec-draft-device", named)
    split = "layer" if named is not None and len(own) == 1 else settings.split_mode
    layers = given.gpu_layers(own, "-ngld", blocks=model.blocks)
    return replace(
        settings,
        gpu_layers=layers,
        devices=() if own == given.every or split == "none" else own,
        split_mode=split,
        tensor_split=given.tensor_split(own),
        main_gpu=given.main_gpu(own),
        op_offload=settings.op_offload and bool(own or not given.every),
        overrides=placing.read(given.usable, given.names, given.say, draft=True),
        kv_type_k=settings.draft_kv_type_k,
        kv_type_v=settings.draft_kv_type_v,
        verified_tokens=0,
        kept_tokens=0,
        cache_ram_bytes=0,
        draft_layers=False,
        mmproj=False,
    )
