"""Combinations of settings that llama.cpp refuses for a model, after its parser has taken them.

The rules are those of llama_init_from_model and llama_context's constructor (src/llama-context.cpp, b11434), and the
room that it makes for the graph (memory/graph_room.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from plan_llama.engines.left_out import FlashAttn
from plan_llama.findings import Finding
from plan_llama.memory import graph_room
from plan_llama.memory.context import reserved_batch
from plan_llama.memory.flash_attention import ENDS_WITH_IT
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Settings
from plan_llama.models.spec import engine_needed
from plan_llama.models.types import ModelSpec

# All quantised cache types that the parser takes have blocks of 32 elements.
_BLOCK = 32
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ, src/llama-cparams.h
# Its caches are allocated as K only without the MLA keys in the header.
_ONE_CACHE_TYPE = frozenset({"deepseek4"})
# The bias of scores is made for one cache (build_pos_bias in src/llama-graph.cpp): ggml_can_repeat fails.
_ONE_STREAM = frozenset({"t5"})
# Files with K and V in one projection are read, and then computed with a cache that is not made: the header has to have
# the latent heads' sizes, and with them the cache is K only (src/models/kimi-linear.cpp, kimi-k3.cpp).
_SPLIT_PROJECTIONS = frozenset({"kimi-k3", "kimi-linear"})
# Made to draft for one other model, whose token table and head they use unless they have these of their own.
_DRAFTERS = {
    "dflash": frozenset({"token_embd.weight"}),  # the head may be tied to it
    "eagle3": frozenset({"token_embd.weight", "output.weight"}),
    "gemma4-assistant": frozenset(),  # it reads the other model's cache as well
}


def refusals(settings: Settings, *, table: ModelTable, flash_attn: FlashAttn = "auto") -> tuple[Finding, ...]:
    """An error for each combination that makes the context fail. `flash_attn` is as asked.

    Raises ModelError where the header lacks what a rule needs.
    """
    found: list[Finding] = []
    model = table.spec
    asked = flash_attn if settings.flash_attn else "off"
    if settings.split_mode == "tensor" and asked == "off":
        text = "a split by tensor (-sm tensor) requires flash attention"
        found.append(Finding(id="flash-attn-unsupported", severity="error", text=text, fix="write -fa on"))
    if model.architecture in ENDS_WITH_IT and asked != "off":
        text = f"llama.cpp b11434 ends when it loads {model.architecture} with flash attention"
        found.append(Finding(id="flash-attn-unsupported", severity="error", text=text, fix="write -fa off"))
    if settings.kv_type_k != settings.kv_type_v and _one_cache_type(model):
        text = (
            f"{model.architecture} keeps one compressed cache: its K ({settings.kv_type_k}) and V "
            f"({settings.kv_type_v}) types must be the same"
        )
        fix = f"write -ctk {settings.kv_type_k} -ctv {settings.kv_type_k}"
        found.append(Finding(id="kv-type-combo-unsupported", severity="error", text=text, fix=fix))
    if _quantised(settings.kv_type_v) and asked == "off":
        text = f"a quantised V cache ({settings.kv_type_v}) requires flash attention, which is off"
        found.append(
            Finding(id="kv-quant-needs-fa", severity="error", text=text, fix="write -fa on, or -ctv f16")
        )
    if asked != "off":
        for half, kind in (("key", settings.kv_type_k), ("value", settings.kv_type_v)):
            size = _head_size(model, half)
            if _quantised(kind) and size is not None and size % _BLOCK:
                text = (
                    f"cache type {kind} packs {_BLOCK} elements: the {half} head size {size} is no multiple"
                )
                fix = f"write {'-ctk' if half == 'key' else '-ctv'} f16"
                found.append(Finding(id="kv-type-combo-unsupported", severity="error", text=text, fix=fix))
    if _only_drafts(table):
        text = f"{model.name} ({model.architecture}) only drafts for another model: llama.cpp does not run it alone"
        fix = "give the model that it was made for with -m, and this one with -md"
        found.append(Finding(id="draft-model-alone", severity="error", text=text, fix=fix))
    if model.architecture in _ONE_STREAM and settings.parallel > 1 and not settings.kv_unified:
        text = (
            f"llama.cpp b11434 ends when it loads {model.architecture} with slots that do not share a cache"
        )
        found.append(Finding(id="slots-unsupported", severity="error", text=text, fix="write -kvu, or -np 1"))
    if model.architecture in _SPLIT_PROJECTIONS and any(".attn_kv_b." in name for name in table.by_name):
        text = f"llama.cpp b11434 ends when it loads {model.architecture} with K and V in one projection (attn_kv_b)"
        fix = "a file that is converted anew has attn_k_b and attn_v_b"
        found.append(Finding(id="projection-unsupported", severity="error", text=text, fix=fix))
    if settings.parallel > MOST_SEQUENCES:
        text = f"{settings.parallel} slots: llama.cpp has at most {MOST_SEQUENCES} sequences"
        fix = f"write -np {MOST_SEQUENCES} or less"
        found.append(Finding(id="bad-context", severity="error", text=text, fix=fix))
    if settings.draft_layers and not model.int_param("nextn_predict_layers", 0):
        text = "the file holds no next-token-prediction layer for --spec-type draft-mtp"
        found.append(
            Finding(id="draft-layers-missing", severity="error", text=text, fix="leave --spec-type out")
        )
    if not found:
        found += _too_large(settings, table)
    return tuple(found)


def _too_large(settings: Settings, table: ModelTable) -> Iterator[Finding]:
    """A graph of more tensors than the engine makes room for, and the first change that leaves enough out."""
    without = graph_room.missing(table, reserved_batch(settings, table.windows))
    if without is None:
        return
    changes = {
        "write -kvu: the slots then share one cache": replace(settings, kv_unified=True),
        "write -ctk f16 -ctv f16": replace(settings, kv_type_k="f16", kv_type_v="f16"),
    }
    fix = next(
        (
            text
            for text, changed in changes.items()
            if graph_room.missing(table, reserved_batch(changed, table.windows)) is None
        ),
        "",
    )
    tensors, places = without
    text = (
        f"llama.cpp b11434 ends when it loads this: the graph of {table.spec.name} has {tensors:,} tensors with these "
        f"cache types and slots, and there is room for {places:,}"
    )
    yield Finding(id="graph-too-large", severity="error", text=text, fix=fix)


def _only_drafts(table: ModelTable) -> bool:
    """llama_context's constructor: these read from another model's context what they lack themselves."""
    needed = _DRAFTERS.get(table.spec.architecture)
    return needed is not None and (not needed or not needed <= table.by_name.keys())


def unreadable(model: ModelSpec, engine: str = "llama.cpp") -> Finding | None:
    """An error for a file with tensor types that an engine does not know."""
    needed = engine_needed(model)
    if needed is None or needed[0] == engine:
        return None
    only, types = needed
    return Finding(
        id="tensor-types-unknown",
        severity="error",
        text=f"{model.name} {model.quant} has tensor types that {engine} does not know ({', '.join(types)}): only "
        f"{only} reads it",
        fix=f"--engine {only} plans for it",
    )


def _one_cache_type(model: ModelSpec) -> bool:
    mla = bool(
        model.hparams.get("attention.key_length_mla") and model.hparams.get("attention.value_length_mla")
    )
    return mla or model.architecture in _ONE_CACHE_TYPE


def _quantised(kind: str) -> bool:
    return kind.startswith(("q", "iq"))


def _head_size(model: ModelSpec, half: str) -> int | None:
    """The header's head size, else embedding / heads; None for a model without attention heads.

    Of a WavTokenizer the width inside is features_length; embedding_length is that of its output
    (llama_model_base::load_hparams, src/llama-model.cpp, b11434).
    """
    if (given := model.hparams.get(f"attention.{half}_length")) is not None:
        return int(given)
    heads = model.int_param("attention.head_count", 0)
    width = model.int_param("features_length", 0) or model.int_param("embedding_length")
    return width // heads if heads else None
