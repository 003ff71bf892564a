"""Prints the profile of a model: shapes from its config.json, files and sizes from a listing of its repositories.

    python scripts/model_profile.py SPEC.json LISTING.json > profiles/models/ID.toml

LISTING is {repository: [[path, "46.2 GB"], ...]} as catalogs of GGUFs have it (GiB there, whatever they call it).
SPEC is what no config says:

- name, aliases, licence, released, source, parameters, sampling, projector: as in the profile;
- config: the config.json, or its path; hparams: what differs from it (all of it, with `architecture` and
  `vocab_size`, where there is no config);
- listing: the page that LISTING is from;
- repos: [{repo, quants, hparams}], the files to list, and what differs in them. A repository that is not in LISTING
  has `sizes`, {quant: [files, GB, KLD]}, and `listing`, the page that states them;
- fixed: [[pattern of quants, pattern of tensors, type], ...], what is known of the files' types.

A file that has the size of llama-quantize's mix of its name is listed as that mix; all others get types that come
to the size that is listed.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from plan_llama.errors import ModelError
from plan_llama.models import catalog_models, ggml_types, quant_mix, shards, tables
from plan_llama.models.config import from_config
from plan_llama.models.known_models import TypeRule
from plan_llama.models.types import Tensor
from plan_llama.units import GB, GIB

_SLACK_BYTES, _SLACK = 30_000_000, 0.005  # a header's size is estimated
# What publishers give the bulk of the weights, from few bits to many; a mix lies between two neighbours.
_K_TYPES = ("iq2_xxs", "iq2_s", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0", "bf16")
_I_TYPES = (
    "q1_0",
    "iq1_s",
    "iq1_m",
    "iq2_xxs",
    "iq2_xs",
    "iq2_s",
    "iq3_xxs",
    "iq3_s",
    "iq4_xs",
    *_K_TYPES[5:],
)
_PACKED_TYPES = (*_I_TYPES[:8], "mxfp4")  # experts that are published in 4 bits are not made larger
_REST_TYPES = ("bf16", "q8_0", "q6_K", "q5_K", "q4_K")
_PACKED = frozenset({"deepseek4", "gpt-oss", "kimi-k3"})


Rules = list[dict[str, str]]


class Listed(NamedTuple):
    """One GGUF of a listing: its files in order, their sum, and what rounding may hide."""

    files: tuple[str, ...]
    size_bytes: float
    rounding_bytes: float
    kld: float | None = None


class Model(NamedTuple):
    """What decides a file's tensors."""

    architecture: str
    hparams: dict[str, Any]
    vocab: int


def listed(rows: Sequence[Sequence[str]]) -> dict[str, Listed]:
    """The GGUFs of a repository by quant: split ones as one, no projectors and draft heads."""
    groups: dict[tuple[str, int], dict[int, tuple[str, float, float]]] = {}
    for path, text in rows:
        name = path.rpartition("/")[2]
        if not name.lower().endswith(".gguf") or re.match(
            r"(?i)(mmproj|imatrix|mtp|draft|dflash|eagle)", name
        ):
            continue
        number, _, unit = text.partition(" ")
        scale = {"MB": GIB / 1024, "GB": GIB, "TB": GIB * 1024}[unit]
        part = shards.part_of(Path(path))
        folder = path.rpartition("/")[0]
        key = (f"{folder}/{part[0]}", part[2]) if part else (path, 1)
        groups.setdefault(key, {})[part[1] if part else 1] = (path, float(number) * scale, 0.05 * scale)
    found: dict[str, Listed] = {}
    for (prefix, count), parts in groups.items():
        stem = prefix.rpartition("/")[2].removesuffix(".gguf")
        quant = ggml_types.quant_in_name(stem)
        if quant and stem.upper().endswith(quant.upper()) and len(parts) == count:
            ordered = [parts[number] for number in sorted(parts)]
            found.setdefault(
                quant,
                Listed(
                    tuple(row[0] for row in ordered),
                    sum(row[1] for row in ordered),
                    sum(row[2] for row in ordered),
                ),
            )
    return found


def made(model: Model, quant: str, size: Listed) -> tuple[int, bool] | None:
    """(bytes, with an importance matrix) of llama-quantize's mix of that name where it has the listed size."""
    if quant_mix.mix_name(quant) is None:
        return None
    for imatrix in (False, True):
        try:
            tensors = quant_mix.tensors_of(*model, quant, imatrix=imatrix)
        except ModelError:
            continue
        if tensors is None:
            return None
        total = quant_mix.file_size(tensors, vocab_size=model.vocab).total_bytes
        if abs(total - size.size_bytes) <= size.rounding_bytes + min(_SLACK_BYTES, _SLACK * size.size_bytes):
            return total, imatrix
    return None


def fitted(model: Model, quant: str, size: Listed, fixed: Rules) -> Rules:
    """Types that come to the listed size: a bulk between two neighbouring types, the upper one in leading layers.

    `fixed` are rules that are known and come first.
    """
    named = tables.tensors(*model)
    if named is None:
        raise SystemExit(f"no tensor table for {model.architecture}")
    kept = quant_mix.converted(model.architecture, named)
    routed = any("_exps" in tensor.name for tensor in kept)
    bulk = "_exps" if routed else r"^blk\."
    blocks = int(model.hparams["block_count"])
    packed = model.architecture in _PACKED
    types = _PACKED_TYPES if packed else _I_TYPES if re.search("IQ|TQ|Q1_0", quant) else _K_TYPES
    bits = int((re.search(r"[0-9]", quant) or [8])[0])
    rest = _REST_TYPES[(1 if bits >= 4 else 2 if bits == 3 else 3) :]

    def total(rules: Rules) -> int:
        tensors = (typed(model.architecture, tensor, rules) for tensor in kept)
        return quant_mix.file_size(tensors, vocab_size=model.vocab).total_bytes

    def between(part: str, low: str, high: str, before: Rules, behind: Rules) -> Rules | None:
        """`high` in as many leading layers as come nearest to the size; None where it is not between the two."""

        def rules(layers: int) -> Rules:
            leading = (
                [{"match": part, "type": high, "layers": f"0-{layers - 1}"}] if 0 < layers < blocks else []
            )
            rest_of_it = {"match": part, "type": high if layers == blocks else low}
            return [*fixed, *before, *leading, rest_of_it, *behind]

        few, many = 0, blocks
        if not 0.997 * total(rules(few)) <= size.size_bytes <= 1.003 * total(rules(many)):
            return None
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if total(rules(middle)) <= size.size_bytes else (few, middle)
        return min((rules(few), rules(many)), key=lambda found: abs(total(found) - size.size_bytes))

    found = None
    if packed:  # the experts as they are published, and the rest decides
        before = [{"match": bulk, "type": "mxfp4"}]
        for high, low in pairwise(_REST_TYPES):
            for other in (low, high):
                found = found or between(r"^blk\.", low, high, before, [{"match": "", "type": other}])
    for other in rest:
        for low, high in pairwise(types):
            found = found or between(bulk, low, high, [], [{"match": "", "type": other}])
    if found:
        return found
    raise SystemExit(f"{quant}: no types come to {size.size_bytes / GIB:.1f} GiB")


def typed(architecture: str, tensor: Tensor, rules: Rules) -> Tensor:
    """A tensor with the type that the catalog gives it under these rules."""
    parsed = tuple(
        TypeRule(
            match=re.compile(rule["match"]),
            type=ggml_types.by_name(rule["type"]),
            layers=_span(rule["layers"]) if "layers" in rule else None,
        )
        for rule in rules
    )
    return Tensor(tensor.name, catalog_models.type_of(architecture, tensor, parsed), tensor.shape)


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last)


def profile(spec: Mapping[str, Any], listing: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the profile."""
    config = spec.get("config")
    if isinstance(config, str):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    architecture, hparams, vocab = from_config(config, spec["name"]) if config else ("", {}, 0)
    architecture, vocab = spec.get("architecture", architecture), spec.get("vocab_size", vocab)
    hparams = {**hparams, **spec.get("hparams", {})}
    hparams = {key: value for key, value in hparams.items() if value is not None and key != "vocab_size"}
    model = Model(architecture, hparams, vocab)
    yield f"# Shapes: {spec['source']} (config.json), as llama.cpp's converter writes them into a GGUF."
    yield "# What the keys mean: docs/reference/models.md."
    yield from (
        textwrap.wrap(spec["note"], 110, initial_indent="# ", subsequent_indent="# ")
        if "note" in spec
        else ()
    )
    files = list(_files(spec, listing, model))
    names = [item["quant"] for item in files if item.get("rules") is not None] + [
        quant for item in files for quant in item.get("bytes", ())
    ]
    default = next(
        (name for name in (*spec.get("default", ()), "Q4_K_M", "UD-Q4_K_XL", "Q8_0") if name in names),
        names[0],
    )
    for key in (
        "name",
        "aliases",
        "architecture",
        "licence",
        "released",
        "vocab_size",
        "source",
        "default_quant",
    ):
        value = {"architecture": architecture, "vocab_size": vocab, "default_quant": default}.get(
            key, spec.get(key)
        )
        if value is not None:
            yield f"{key} = {value if key == 'released' else _toml(value)}"
    for name in ("parameters", "sampling", "projector"):
        if name in spec:
            table = dict(spec[name])
            source = f" # {table.pop('_source')}" if "_source" in table else ""
            yield f"\n[{name}]{source}"
            yield from (f"{_key(key)} = {_toml(value)}" for key, value in table.items())
    yield "\n[hparams]"
    yield from _pairs(hparams)
    for item in files:
        yield ""
        yield from _quant(item) if "rules" in item else _group(item)


def _files(spec: Mapping[str, Any], listing: Mapping[str, Any], model: Model) -> Iterator[dict[str, Any]]:
    for repo in spec["repos"]:
        found = listed(listing[repo["repo"]]) if "sizes" not in repo else _stated(repo["sizes"])
        own = repo.get("hparams", {})
        here = model._replace(hparams={**model.hparams, **own})
        common = {"repo": repo["repo"], "hparams": own, "listing": repo.get("listing", spec["listing"])}
        common["decimal"] = "sizes" in repo
        groups: dict[tuple[str, bool, int], dict[str, int]] = {}
        others = []
        for quant in repo["quants"]:
            size = found[quant]
            same = made(here, quant, size) if size.files else None
            if same:
                pattern = re.sub(r"-[0-9]{5}-of-", "-{part}-of-", size.files[0]).replace(quant, "{quant}")
                pattern = re.sub(r"-\{part\}-of-[0-9]{5}", "-{part}", pattern)
                groups.setdefault((pattern, same[1], len(size.files)), {})[quant] = same[0]
            else:
                others.append(
                    {
                        **common,
                        "quant": quant,
                        "listed": size,
                        "rules": fitted(here, quant, size, _fixed(spec, quant)),
                    }
                )
        yield from others
        for (pattern, imatrix, parts), sizes in groups.items():
            yield {**common, "file": pattern, "imatrix": imatrix, "parts": parts, "bytes": sizes}


def _stated(sizes: Mapping[str, Any]) -> dict[str, Listed]:
    """The same from {quant: [files, GB as the publisher states them]}."""
    return {
        quant: Listed(tuple(files), gigabytes * GB, 0.05 * GB, *kld)
        for quant, (files, gigabytes, *kld) in sizes.items()
    }


def _fixed(spec: Mapping[str, Any], quant: str) -> Rules:
    return [
        {"match": match, "type": kind}
        for name, match, kind in spec.get("fixed", ())
        if re.search(name, quant)
    ]


def _quant(item: Mapping[str, Any]) -> Iterator[str]:
    size: Listed = item["listed"]
    digits = 1 if size.size_bytes >= 10 * GIB else 2 if size.size_bytes >= GIB else 3
    yield "[[quant]]"
    yield f"quant = {_toml(item['quant'])}"
    yield f"repo = {_toml(item['repo'])}"
    unit, name = (GB, "GB") if item["decimal"] else (GIB, "GiB")
    yield f'size = "{size.size_bytes / unit:.{digits}f} {name}"'
    yield f"source = {_toml(item['listing'])}"
    if size.files:
        name = re.sub(r"-[0-9]{5}-of-[0-9]{5}\.gguf$", "-{part}.gguf", size.files[0])
        yield f"file = {_toml(name)}"
    else:
        yield f"include = {_toml(item['quant'] + '/*')}"
    if len(size.files) > 1:
        yield f"parts = {len(size.files)}"
    if size.kld is not None:
        yield f"kld = {size.kld}"
    if item["hparams"]:
        yield f"hparams = {_inline(item['hparams'])}"
    yield 'mix = "modelled"'
    yield f"types = [{', '.join(_inline(rule) for rule in item['rules'])}]"


def _group(item: Mapping[str, Any]) -> Iterator[str]:
    yield "[[llama_quantize]]"
    yield f"repo = {_toml(item['repo'])}"
    yield f"source = {_toml('https://huggingface.co/' + item['repo'])}"
    yield f"listing = {_toml(item['listing'])}"
    yield f"file = {_toml(item['file'])}"
    if item["parts"] > 1:
        yield f"parts = {item['parts']}"
    if item["hparams"]:
        yield f"hparams = {_inline(item['hparams'])}"
    if item["imatrix"]:
        yield "imatrix = true"
    yield f"bytes = {_inline(item['bytes'])}"


def _pairs(hparams: Mapping[str, Any]) -> Iterator[str]:
    for key, value in hparams.items():
        line = f"{_key(key)} = {_toml(value)}"
        if len(line) <= 110:
            yield line
            continue
        yield f"{_key(key)} = ["
        yield from textwrap.wrap(
            _toml(value)[1:-1] + ",", 108, initial_indent="    ", subsequent_indent="    "
        )
        yield "]"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _inline(table: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{_key(key)} = {_toml(value)}" for key, value in table.items()) + " }"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}'" if "\\" in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:e}".partition("e")
        short = f"{float(mantissa):g}e{int(exponent)}" if exponent else repr(value)
        large = abs(value) >= 1e5 or 0 < abs(value) < 1e-3
        return short if large and float(short) == value else repr(value)
    if isinstance(value, Mapping):
        return _inline(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def main() -> int:
    """Writes the profile to standard output."""
    spec, listing = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    sys.stdout.write("\n".join(profile(spec, listing)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
