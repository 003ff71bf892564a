"""The models that are known by name: one TOML profile each under `models/`, and the specs they describe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from plan_llama import catalog
from plan_llama.errors import ModelError, ProfileError
from plan_llama.models import ggml_types, tables
from plan_llama.models.shards import part_name
from plan_llama.models.types import ModelSpec, Tensor, TensorType
from plan_llama.units import GB, GIB

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) (GB|GiB)")
_LAYER = re.compile(r"blk\.([0-9]+)\.")

# What llama-quantize takes instead where a row is no multiple of the block (tensor_type_fallback in
# src/llama-quant.cpp, b11434).
_FALLBACK = {"q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0", "tq1_0": "q4_0", "tq2_0": "q4_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeRule:
    """Tensors whose name holds `match` get `type`; `layers` (first, last) or None for every tensor."""

    match: re.Pattern[str]
    type: TensorType
    layers: tuple[int, int] | None = None

    def holds(self, name: str) -> bool:
        """Whether this rule is about the tensor of that name."""
        if not self.match.search(name):
            return False
        if self.layers is None:
            return True
        found = _LAYER.match(name)
        return found is not None and self.layers[0] <= int(found[1]) <= self.layers[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownQuant:
    """One published quantisation. `size_bytes` is the publisher's rounded statement (`size_stated`)."""

    quant: str
    repo: str
    size_bytes: int
    size_stated: str
    source: str
    engine: str = "llama.cpp"  # "ik_llama.cpp" where the file has types that only it reads
    files: tuple[str, ...] = ()  # paths in the repo, first shard first; empty where the names are not known
    include: str  # pattern for `hf download --include`
    parts: int | None = None
    rules: tuple[TypeRule, ...] = ()
    mix: str | None = None  # "published" recipe, or "modelled" here to the published size
    kld: float | None = None  # mean KL divergence from the unquantised model, as published
    perplexity: float | None = None

    @property
    def publisher(self) -> str:
        """The owner of the repository."""
        return self.repo.partition("/")[0]

    @property
    def plannable(self) -> bool:
        """Whether llama.cpp can load it and its tensors' types are known."""
        return self.engine == "llama.cpp" and bool(self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model of the catalog; `quants` are in the order of the profile, best first."""

    id: str
    name: str
    aliases: tuple[str, ...]
    architecture: str
    hparams: Mapping[str, Any]
    vocab_size: int
    licence: str
    released: date | None
    source: str
    sampling: Mapping[str, float]
    default_quant: str
    quants: tuple[KnownQuant, ...]
    kv_quantisation_breaks: str | None = None

    @property
    def context_train(self) -> int:
        """Tokens of the context it was trained for."""
        return int(self.hparams.get("context_length", 0))

    def named(self, quant: str) -> KnownQuant | None:
        """The quant of that name in any case; `publisher/QUANT` picks one of several publishers'."""
        publisher, _, name = quant.lower().rpartition("/")
        for known in self.quants:
            if known.quant.lower() == name and (not publisher or known.publisher.lower() == publisher):
                return known
        return None


@cache
def model_ids() -> tuple[str, ...]:
    """The ids of all models of the catalog, sorted."""
    return tuple(sorted(catalog.files("models")))


@cache
def model(model_id: str) -> KnownModel:
    """A model by its exact id. Raises ProfileError for a wrong profile, KeyError where there is none."""
    return _parse(model_id, catalog.files("models")[model_id])


def list_models() -> tuple[KnownModel, ...]:
    """Every model of the catalog, by id."""
    return tuple(model(model_id) for model_id in model_ids())


def find(name: str) -> KnownModel | None:
    """The model of that id, name or alias, in any case and with blanks for dashes; None for none."""
    wanted = _plain(name)
    if wanted in model_ids():
        return model(wanted)
    for known in list_models():
        if wanted in {_plain(alias) for alias in (known.name, *known.aliases)}:
            return known
    return None


def get(name: str) -> KnownModel:
    """Like find, but an unknown name raises ModelError with the nearest names."""
    known = find(name)
    if known:
        return known
    import difflib

    names = {alias.lower(): m.id for m in list_models() for alias in (m.id, m.name, *m.aliases)}
    near = dict.fromkeys(names[found] for found in difflib.get_close_matches(_plain(name), names, 3, 0.5))
    known_names = ", ".join(model_ids())
    hint = f"did you mean {' or '.join(near)}" if near else f"the catalog has {known_names}"
    raise ModelError(
        f"no model {name!r} in the catalog, and no such file",
        hint=f"{hint} (plan-llama models lists them); or give a GGUF file",
    )


def get_quant(known: KnownModel, quant: str | None) -> KnownQuant:
    """A quant of a model, None meaning its default. An unknown one raises ModelError with what exists."""
    found = known.named(quant or known.default_quant)
    if found:
        return found
    import difflib

    names = list(dict.fromkeys(item.quant for item in known.quants))
    near = difflib.get_close_matches((quant or "").upper(), names, 2, 0.6)
    lead = f"did you mean {' or '.join(near)}; " if near else ""
    raise ModelError(
        f"no quant {quant!r} of {known.name} in the catalog", hint=f"{lead}known are {', '.join(names)}"
    )


def resolve(name: str, quant: str | None = None) -> ModelSpec:
    """The spec of a catalog model: tensors from its shapes, with the types that the quant's mix gives them.

    Raises ModelError for an unknown model or quant, and for one whose types only another engine reads.
    """
    known = get(name)
    return build(known, get_quant(known, quant))


def build(known: KnownModel, item: KnownQuant) -> ModelSpec:
    """The modelled spec of one quant; `present` False and no path (that is resolve_model's)."""
    if not item.plannable:
        others = ", ".join(dict.fromkeys(q.quant for q in known.quants if q.plannable))
        why = (
            f"needs {item.engine} (it has tensor types that llama.cpp does not read)"
            if item.engine != "llama.cpp"
            else "has no known tensor types in the catalog"
        )
        raise ModelError(
            f"{known.name} {item.quant} ({item.size_stated}, {item.repo}) {why}",
            hint=f"for llama.cpp choose one of {others}",
        )
    named = tables.tensors(known.architecture, known.hparams, known.vocab_size)
    if named is None:
        raise ProfileError(f"models/{known.id}.toml: no tensor table for architecture {known.architecture!r}")
    return ModelSpec(
        name=known.name,
        architecture=known.architecture,
        quant=item.quant,
        tensors=tuple(Tensor(name, type_of(name, shape, item.rules), shape) for name, shape in named),
        hparams=known.hparams,
        vocab_size=known.vocab_size,
        file_bytes=item.size_bytes,
        source="catalog",
        catalog_id=known.id,
        licence=known.licence,
        sampling=known.sampling,
        kv_quantisation_breaks=known.kv_quantisation_breaks,
        sources={"file_bytes": "catalog", "tensors": "catalog" if item.mix == "published" else "modelled"},
    )


def type_of(name: str, shape: tuple[int, ...], rules: tuple[TypeRule, ...]) -> TensorType:
    """The type a tensor gets: small ones stay f32 as in every converter, then the first rule that holds."""
    if len(shape) < 2 or not name.endswith(".weight") or "ffn_gate_inp" in name:
        return ggml_types.by_name("f32")
    kind = next((rule.type for rule in rules if rule.holds(name)), None)
    if kind is None:
        raise ProfileError(f"no rule gives tensor '{name}' a type")
    if shape[0] % kind.block_elements:
        kind = ggml_types.by_name(_FALLBACK.get(kind.name, "iq4_nl"))
    return kind if shape[0] % kind.block_elements == 0 else ggml_types.by_name("f16")


def guess(file_name: str) -> tuple[str, str] | None:
    """(catalog id, quant) that a GGUF's file name speaks of, when both are in the catalog.

    For a command whose file is on another machine: `glm-5.1-744b-ud-iq2_m.gguf` is UD-IQ2_M of glm-5.1.
    """
    stem = Path(file_name.replace("\\", "/")).name.lower()
    if not stem.endswith(".gguf"):
        return None
    quant = ggml_types.quant_in_name(stem)
    plain = _plain(stem)
    best: tuple[int, KnownModel] | None = None
    for known in list_models():
        for alias in (known.id, known.name, *known.aliases):
            text = _plain(alias)
            starts = plain.startswith(text) and not re.match(r"[.]?[0-9a-z]", plain[len(text) :])
            if starts and (best is None or len(text) > best[0]):
                best = len(text), known
    if best is None or quant is None:
        return None
    found = best[1].named(quant)
    return (best[1].id, found.quant) if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _parse(model_id: str, path: Path) -> KnownModel:
    table = catalog.Table(catalog.load(path), str(path))
    sampling = table.table("sampling")
    hparams = table.table("hparams")
    known = KnownModel(
        id=model_id,
        name=table.take("name", str),
        aliases=table.strings("aliases"),
        architecture=table.take("architecture", str),
        hparams={key: _hparam(hparams, key) for key in hparams.keys()},  # noqa: SIM118  a Table, not a dict
        vocab_size=table.take("vocab_size", int),
        licence=table.take("licence", str),
        released=table.get("released", date),
        source=table.take("source", str),
        sampling={key: sampling.take(key, float) for key in sampling.keys()},  # noqa: SIM118  a Table
        default_quant=table.take("default_quant", str),
        quants=tuple(_quant(item) for item in table.tables("quant")),
        kv_quantisation_breaks=table.get("kv_quantisation_breaks", str),
    )
    table.done()
    if known.named(known.default_quant) is None:
        raise ProfileError(f"{path}: default_quant {known.default_quant!r} is not among the quants")
    return known


def _hparam(table: catalog.Table, key: str) -> Any:
    value: Any = table.take(key, object)
    if isinstance(value, list):
        value = tuple(value)
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, bool | int | float | str) for item in items):
        raise ProfileError(f"{table.where}: '{key}' must be a number, a string or an array of them")
    return value


def _quant(table: catalog.Table) -> KnownQuant:
    stated = table.take("size", str)
    parts = table.get("parts", int)
    name = table.get("file", str)
    files = _files(table, name, parts)
    quant = table.take("quant", str)
    folder = name.rpartition("/")[0] if name else ""
    item = KnownQuant(
        quant=quant,
        repo=table.take("repo", str),
        size_bytes=_size(table, stated),
        size_stated=stated,
        source=table.take("source", str),
        engine=table.get("engine", str) or "llama.cpp",
        files=files,
        include=table.get("include", str) or (f"{folder}/*" if folder else name or f"*{quant}*"),
        parts=parts,
        rules=tuple(_rule(rule) for rule in table.tables("types")),
        mix=table.get("mix", str),
        kld=table.get("kld", float),
        perplexity=table.get("perplexity", float),
    )
    table.done()
    if item.mix not in (None, "published", "modelled") or bool(item.mix) != bool(item.rules):
        raise ProfileError(f'{table.where}: \'types\' come with mix = "published" or "modelled"')
    return item


def _files(table: catalog.Table, name: str | None, parts: int | None) -> tuple[str, ...]:
    if name is None:
        return ()
    if "{part}" not in name:
        return (name,)
    if not parts or not 1 < parts <= 1000:
        raise ProfileError(f"{table.where}: a file name with {{part}} needs 'parts', from 2 to 1000")
    prefix, _, rest = name.partition("-{part}")
    if rest != ".gguf":
        raise ProfileError(f"{table.where}: 'file' must end in -{{part}}.gguf")
    return tuple(part_name(prefix, number, parts) for number in range(1, parts + 1))


def _size(table: catalog.Table, stated: str) -> int:
    match = _SIZE.fullmatch(stated)
    if not match:
        raise ProfileError(f'{table.where}: \'size\' must be like "236 GB" or "432.80 GiB", found {stated!r}')
    return round(float(match[1]) * (GB if match[2] == "GB" else GIB))


def _rule(table: catalog.Table) -> TypeRule:
    pattern, kind, layers = table.take("match", str), table.take("type", str), table.get("layers", str)
    table.done()
    span = re.fullmatch(r"([0-9]+)-([0-9]+)", layers or "")
    if layers and not span:
        raise ProfileError(f"{table.where}: 'layers' must be like \"3-16\", found {layers!r}")
    try:
        return TypeRule(
            match=re.compile(pattern),
            type=ggml_types.by_name(kind),
            layers=(int(span[1]), int(span[2])) if span else None,
        )
    except re.error as error:
        raise ProfileError(f"{table.where}: 'match' is not a pattern ({error})") from error
    except KeyError as error:
        raise ProfileError(f"{table.where}: llama.cpp has no tensor type {kind!r}") from error
