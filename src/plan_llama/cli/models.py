"""What `plan-llama models` and `plan-llama inspect FILE` print, as text and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from plan_llama.models.catalog_models import KnownModel, KnownQuant, list_models
from plan_llama.models.spec import active_parameters, class_totals
from plan_llama.models.types import ModelSpec
from plan_llama.units import publisher_gb


def search(words: str = "") -> tuple[KnownModel, ...]:
    """The catalog's models whose id, name, aliases, architecture or quants hold every word; all for none."""
    wanted = words.lower().split()
    found = []
    for known in list_models():
        quants = [text for quant in known.quants for text in (quant.quant, quant.repo)]
        text = " ".join((known.id, known.name, known.architecture, *known.aliases, *quants)).lower()
        if all(word in text for word in wanted):
            found.append(known)
    return tuple(found)


def render_models(models: Iterable[KnownModel]) -> str:
    """The catalog for people: a model, then its quants, best first."""
    blocks = ["\n".join(_model_lines(known)) for known in models]
    if not blocks:
        return "No model in the catalog matches.\n"
    return "\n\n".join(blocks) + "\n\nSizes are as published: GB is 10**9 bytes, GiB 2**30.\n"


def models_json(models: Iterable[KnownModel]) -> dict[str, Any]:
    """The catalog for programs."""
    return {"schema": 1, "models": [_model_json(known) for known in models]}


def _model_lines(known: KnownModel) -> Iterator[str]:
    context = f"context {known.context_train:,}"
    yield f"{known.id}  {known.name}, {known.architecture}, {context}, {known.licence}"
    if known.kv_quantisation_breaks:
        yield from textwrap.wrap(
            f"a quantised KV cache is left off: {known.kv_quantisation_breaks}",
            100,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    for quant in known.quants:
        notes = [f"KLD {quant.kld:g}"] if quant.kld is not None else []
        if quant.engine != "llama.cpp":
            notes.append(f"{quant.engine} only")
        elif quant.mix == "modelled":
            notes.append("tensor types estimated from the size")
        line = f"  {quant.quant:<12} {quant.size_stated:>13}  {quant.repo:<32} {', '.join(notes)}"
        yield line.rstrip()


def _model_json(known: KnownModel) -> dict[str, Any]:
    return {
        "id": known.id,
        "name": known.name,
        "aliases": list(known.aliases),
        "architecture": known.architecture,
        "licence": known.licence,
        "context_train": known.context_train,
        "released": known.released.isoformat() if known.released else None,
        "sampling": dict(known.sampling),
        "kv_quantisation_breaks": known.kv_quantisation_breaks,
        "source": known.source,
        "default_quant": known.default_quant,
        "quants": [_quant_json(quant) for quant in known.quants],
    }


def _quant_json(quant: KnownQuant) -> dict[str, Any]:
    return {
        "quant": quant.quant,
        "repo": quant.repo,
        "size_bytes": quant.size_bytes,
        "size_stated": quant.size_stated,
        "engine": quant.engine,
        "parts": quant.parts,
        "types": quant.mix,
        "kld": quant.kld,
        "perplexity": quant.perplexity,
        "source": quant.source,
    }


def render_inspect(spec: ModelSpec) -> str:
    """What a file holds, for people."""
    return "\n".join(_inspect_lines(spec)) + "\n"


def as_json(spec: ModelSpec) -> dict[str, Any]:
    """What a file holds, for programs. Bytes are of the tensors, without padding."""
    return {
        "schema": 1,
        "path": spec.path,
        "name": spec.name,
        "architecture": spec.architecture,
        "quant": spec.quant,
        "file_bytes": spec.file_bytes,
        "present": spec.present,
        "data_note": spec.data_note,
        "parameters": spec.parameters,
        "active_parameters": active_parameters(spec),
        "layers": spec.layers,
        "draft_layers": spec.int_param("nextn_predict_layers", 0),
        "context_train": spec.context_train,
        "vocab_size": spec.vocab_size,
        "licence": spec.licence,
        "tensors": len(spec.tensors),
        "classes": [
            {
                "name": total.name,
                "tensors": total.tensors,
                "parameters": total.elements,
                "bytes": total.nbytes,
                "types": dict(total.types),
            }
            for total in class_totals(spec)
        ],
        "hparams": {
            key: list(value) if isinstance(value, tuple) else value for key, value in spec.hparams.items()
        },
    }


def _inspect_lines(spec: ModelSpec) -> Iterator[str]:
    drafts = spec.int_param("nextn_predict_layers", 0)
    extra = f" and {drafts} for drafting" if drafts else ""
    experts = spec.int_param("expert_count", 0)
    rows = [
        ("file", _file(spec)),
        ("architecture", spec.architecture),
        ("quant", f"{spec.quant}, {8 * spec.file_bytes / max(1, spec.parameters):.2f} bits per weight"),
        ("size", f"{publisher_gb(spec.file_bytes)} ({spec.file_bytes:,} bytes)"),
        (
            "parameters",
            f"{_billions(spec.parameters)}, {_billions(active_parameters(spec))} active per token",
        ),
        ("layers", f"{spec.layers}{extra}"),
        ("experts", f"{experts}, {spec.int_param('expert_used_count', 0)} used" if experts else "none"),
        ("context", f"{spec.context_train:,} tokens"),
        ("vocabulary", f"{spec.vocab_size:,} tokens"),
        ("licence", spec.licence or "not stated"),
    ]
    yield spec.name
    for label, value in rows:
        yield f"  {label:<14}{value}"
    if spec.data_note:
        yield f"  {'data':<14}NOT ALL THERE: {_printable(spec.data_note)}"
    yield ""
    yield f"  {'tensors':<24}{'count':>6}{'parameters':>13}{'size':>12}   types by size"
    for total in class_totals(spec):
        by_size = sorted(total.types.items(), key=lambda item: -item[1])
        types = ", ".join(name for name, _ in by_size)
        yield (
            f"  {total.name:<24}{total.tensors:>6}{_billions(total.elements):>13}"
            f"{publisher_gb(total.nbytes):>12}   {types}"
        )


def _file(spec: ModelSpec) -> str:
    if spec.source == "catalog":
        return "not on this machine: tensors as the catalog models them"
    return _printable(spec.path or "none")


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 10**7 else f"{count:,}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
