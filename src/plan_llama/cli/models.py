"""What `plan-llama models` and `plan-llama inspect FILE` print, as text and as JSON."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from plan_llama.models.catalog_models import KnownModel, KnownQuant, list_models, model, nearest
from plan_llama.models.known_models import Projector, Published
from plan_llama.models.spec import active_bytes, active_parameters, class_totals
from plan_llama.models.types import ModelSpec
from plan_llama.units import publisher_gb

_IN_FULL = 6  # models that are listed with all their quants


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


def render_models(models: Iterable[KnownModel], words: str = "") -> str:
    """The catalog for people: each model with its quants, largest first; of many models a line each.

    Where none matches `words`, the names that are the most like them.
    """
    listed = tuple(models)
    if not listed:
        near = nearest(words) if words else ()
        also = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"No model in the catalog matches.{also}\nplan-llama models hf:OWNER/REPO looks on the hub.\n"
    if len(listed) > _IN_FULL:
        lines = "\n".join(_short_lines(listed))
        return f"{lines}\n\n{len(listed)} models; plan-llama models WORDS shows the quants of those that match.\n"
    blocks = ["\n".join(_model_lines(known)) for known in listed]
    foot = "Sizes are as published, or (about) what llama-quantize makes.\nGB is 10**9 bytes, GiB 2**30."
    if any(_estimated(quant) for known in listed for quant in known.quants):
        foot += "\n* The types of its tensors are estimated from its size."
    return "\n\n".join(blocks) + f"\n\n{foot}\n"


def models_json(models: Iterable[KnownModel]) -> dict[str, Any]:
    """The catalog for programs."""
    return {"schema": 1, "models": [_model_json(known) for known in models]}


def _short_lines(models: tuple[KnownModel, ...]) -> Iterator[str]:
    width = max(len(known.id) for known in models)
    yield f"{'MODEL':<{width}}  {'WEIGHTS':>7} {'ACTIVE':>6}  {'CONTEXT':>10}  FILES"
    for known in models:
        total, active = _weights(known)
        files = [quant for quant in known.quants if quant.plannable]
        sizes = ""
        if files:
            largest, smallest = (pick(files, key=lambda quant: quant.size_bytes) for pick in (max, min))
            sizes = f"{largest.quant} {publisher_gb(largest.size_bytes)}"
            if smallest is not largest:
                sizes += f" to {smallest.quant} {publisher_gb(smallest.size_bytes)}"
        yield f"{known.id:<{width}}  {total:>7} {active:>6}  {known.context_train:>10,}  {sizes}".rstrip()


def _weights(known: KnownModel) -> tuple[str, str]:
    """Total and active weights as published, short."""
    if known.parameters is None:
        return "", ""
    billions = known.parameters.expected / 1e9
    return f"{billions:.4g}B", known.parameters.active or ""


def _model_lines(known: KnownModel) -> Iterator[str]:
    context = f"context {known.context_train:,}"
    total, active = _weights(known)
    weights = f"{total} weights{f' ({active} active)' if active else ''}, " if total else ""
    yield f"{known.id}  {known.name}"
    yield f"  {weights}{known.architecture}, {context}, {known.licence}"
    if known.projector is not None:
        yield from _wrapped(f"images: {_projector(known.projector)}")
    if known.kv_quantisation_breaks:
        yield from _wrapped(f"a quantised KV cache is left off: {known.kv_quantisation_breaks}")
    for quant in known.quants:
        notes = [f"KLD {quant.kld:g}"] if quant.kld is not None else []
        if quant.engine != "llama.cpp":
            notes.append(f"{quant.engine} only")
        mark = "*" if _estimated(quant) else " "
        line = f"  {quant.quant:<12} {quant.size_stated:>14}{mark} {quant.repo:<30} {', '.join(notes)}"
        yield line.rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        80,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _estimated(quant: KnownQuant) -> bool:
    return quant.engine == "llama.cpp" and quant.mix == "modelled"


def _projector(projector: Projector) -> str:
    if projector.tokens_per_image is not None:
        tokens = f"{projector.tokens_per_image} tokens each"
    else:
        tokens = f"a token per {projector.pixels_per_token} pixels"
    size = publisher_gb(2 * projector.parameters)
    return f"{tokens}, with a projector (mmproj) of {_billions(projector.parameters)}, {size} at F16"


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
        "parameters": _published_json(known.parameters),
        "projector": _projector_json(known.projector),
        "quants": [_quant_json(quant) for quant in known.quants],
    }


def _published_json(published: Published | None) -> dict[str, Any] | None:
    if published is None:
        return None
    return {
        "total": published.total,
        "exact": published.rounding == 0,
        "active": published.active,
        "in_gguf": dict(published.in_gguf),
        "source": published.source,
    }


def _projector_json(projector: Projector | None) -> dict[str, Any] | None:
    if projector is None:
        return None
    return {
        "parameters": projector.parameters,
        "tokens_per_image": projector.tokens_per_image,
        "pixels_per_token": projector.pixels_per_token,
        "source": projector.source,
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
        "active_bytes": active_bytes(spec),
        "kv_bytes_per_token": _kv_bytes(spec),
        "projector": _inspected_projector(spec),
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


def _kv_bytes(spec: ModelSpec) -> int | None:
    """Bytes that a token adds to an f16 cache; None where the header lacks what that takes."""
    from plan_llama.errors import ModelError
    from plan_llama.memory.caches import bytes_per_token

    try:
        return bytes_per_token(spec)
    except ModelError:
        return None


def _inspected_projector(spec: ModelSpec) -> dict[str, Any] | None:
    """What the catalog says of the projector, and what it takes on a card of its own."""
    known = _projector_json(_projector_of(spec))
    if spec.projector is None:
        return known
    from plan_llama.cli import images  # brings the graphs of towers

    return {**(known or {}), **images.inspect_json(spec.projector)}


def _projector_of(spec: ModelSpec) -> Projector | None:
    return model(spec.catalog_id).projector if spec.catalog_id else None


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
        (
            "KV cache",
            f"{kv:,} bytes per token at f16" if (kv := _kv_bytes(spec)) is not None else "not known",
        ),
        ("read per token", f"{publisher_gb(active_bytes(spec))} of weights"),
        ("vocabulary", f"{spec.vocab_size:,} tokens"),
        ("licence", spec.licence or "not stated"),
    ]
    if projector := _projector_of(spec):
        rows.append(("images", _projector(projector)))
    if spec.projector:
        from plan_llama.cli import images

        rows += [(f"  on {place}", images.takes(spec.projector, place)) for place in ("a GPU", "the CPU")]
    yield spec.name
    for label, value in rows:
        # a path stays whole
        lines = [value] if label == "file" else textwrap.wrap(value, 62)
        yield f"  {label:<16}{lines[0]}"
        yield from (" " * 18 + line for line in lines[1:])
    if spec.made_with:
        yield f"  {'made with':<16}{_printable(shlex.join(spec.made_with))}"
    if spec.data_note:
        yield f"  {'data':<16}NOT ALL THERE: {_printable(spec.data_note)}"
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
    if spec.made_with:
        return f"not published: {_printable(spec.path or '')}, once it is made"
    if spec.download is not None and not spec.files:
        return f"{_printable(spec.path or '')}, once it is downloaded"
    return _printable(spec.path or "none")


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 10**7 else f"{count:,}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
