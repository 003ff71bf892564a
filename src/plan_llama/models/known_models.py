"""What a profile under `models/` says: a model's shapes, its published quants, and where each fact comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from plan_llama import catalog
from plan_llama.errors import ModelError, ProfileError
from plan_llama.models import ggml_types
from plan_llama.models.shards import include_pattern, part_name
from plan_llama.models.types import TensorType
from plan_llama.units import GB, GIB

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) (GB|GiB)")
_LAYER = re.compile(r"blk\.([0-9]+)\.")
_COUNT = re.compile(r"([0-9]+(?:\.([0-9]+))?)([MBT])")
_UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}

MADE = "llama-quantize"


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
    """One published quantisation. `size_bytes` is the publisher's rounded statement (`size_stated`).

    A llama-quantize mix has the size that it comes to (`computed`).
    """

    quant: str
    repo: str
    size_bytes: int
    size_stated: str
    source: str
    engine: str = "llama.cpp"  # "ik_llama.cpp" where the file has types that only it reads
    files: tuple[str, ...] = ()  # paths in the repo, first shard first; empty where the names are not known
    include: str  # pattern for `hf download --include`
    parts: int | None = None
    computed: bool = (
        False  # the size is what the mix comes to; `listing` says where it was compared, if it was
    )
    rules: tuple[TypeRule, ...] = ()
    # "published" recipe, "modelled" here to the published size, or "llama-quantize": its own mix `ftype`
    mix: str | None = None
    ftype: str | None = None
    imatrix: bool | None = None  # of a llama-quantize mix; None: only where it cannot be made without
    hparams: Mapping[str, Any] = field(
        default_factory=dict
    )  # what differs from the model's: a draft block kept
    listing: str | None = None  # where this file's name and size were looked up
    kld: float | None = None  # mean KL divergence from the unquantised model, as published
    perplexity: float | None = None

    @property
    def publisher(self) -> str:
        """The owner of the repository."""
        return self.repo.partition("/")[0]

    @property
    def plannable(self) -> bool:
        """Whether llama.cpp can load it and its tensors' types are known."""
        return self.engine == "llama.cpp" and self.mix is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How many weights the publisher states. `rounding` is 0 for an exact number, else what it may be off by."""

    total: int
    rounding: int
    active: str | None  # per token, as stated
    source: str
    in_gguf: Mapping[str, int]  # what a GGUF of the text model has more (or, negative, less), by what it is

    @property
    def expected(self) -> int:
        """Weights that a GGUF of the text model should have."""
        return self.total + sum(self.in_gguf.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Projector:
    """The vision tower and projector that a GGUF has in a file of its own (mmproj). One of the sizes is there.

    `hparams` are the keys of that file's header, without their prefix `clip.`; empty where its shapes are not known.
    """

    parameters: int
    tokens_per_image: int | None  # tokens of one image (or tile) that is scaled to a fixed size
    pixels_per_token: int | None  # pixels behind one token, where images keep their size
    source: str
    kind: str | None = None  # the engine's name for the type
    hparams: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    file: str | None = None  # in the repository of the quants; None where its name is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model of the catalog; `quants` are the largest first."""

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
    parameters: Published | None = None
    projector: Projector | None = None

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


def parse(model_id: str, path: Path) -> KnownModel:
    """A profile. Raises ProfileError that names the place where it is wrong."""
    table = catalog.Table(catalog.load(path), str(path))
    sampling = table.table("sampling")
    hparams = table.table("hparams")
    architecture, vocab_size = table.take("architecture", str), table.take("vocab_size", int)
    keys = _hparams(hparams)
    quants = [
        *(_quant(item, (architecture, keys, vocab_size)) for item in table.tables("quant")),
        *(quant for item in table.tables("llama_quantize") for quant in _mixes(item)),
    ]
    known = KnownModel(
        id=model_id,
        name=table.take("name", str),
        aliases=table.strings("aliases"),
        architecture=architecture,
        hparams=keys,
        vocab_size=vocab_size,
        licence=table.take("licence", str),
        released=table.get("released", date),
        source=table.take("source", str),
        sampling={key: sampling.take(key, float) for key in sampling.keys()},  # noqa: SIM118  a Table
        default_quant=table.take("default_quant", str),
        quants=tuple(sorted(quants, key=lambda quant: -quant.size_bytes)),
        kv_quantisation_breaks=table.get("kv_quantisation_breaks", str),
        parameters=_published(table.table("parameters")),
        projector=_projector(table.table("projector"), keys),
    )
    table.done()
    if known.named(known.default_quant) is None:
        raise ProfileError(f"{path}: default_quant {known.default_quant!r} is not among the quants")
    return known


def _hparams(table: catalog.Table) -> dict[str, Any]:
    return {key: _hparam(table, key) for key in table.keys()}  # noqa: SIM118  a Table, not a dict


def _hparam(table: catalog.Table, key: str) -> Any:
    value: Any = table.take(key, object)
    if isinstance(value, list):
        value = tuple(value)
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, bool | int | float | str) for item in items):
        raise ProfileError(f"{table.where}: '{key}' must be a number, a string or an array of them")
    return value


def _quant(table: catalog.Table, shapes: tuple[str, Mapping[str, Any], int]) -> KnownQuant:
    mix, imatrix = table.get("mix", str), table.get("imatrix", bool)
    own = _hparams(table.table("hparams"))
    shapes = (shapes[0], {**shapes[1], **own}, shapes[2])
    parts = table.get("parts", int)
    name = table.get("file", str)
    files = _files(table, name, parts)
    quant = table.take("quant", str)
    folder = name.rpartition("/")[0] if name else ""
    ftype = table.get("ftype", str)
    if mix == MADE:
        ftype = _ftype(table, ftype or quant)
    elif ftype is not None or imatrix is not None:
        raise ProfileError(f"{table.where}: 'ftype' and 'imatrix' go with mix = \"{MADE}\"")
    stated = table.take("size", str) if ftype is None else table.get("size", str)
    size = _computed_size(table, shapes, ftype, imatrix) if ftype and not stated else _size(table, stated)
    item = KnownQuant(
        quant=quant,
        repo=table.take("repo", str),
        size_bytes=size,
        size_stated=stated or f"about {size / GB:.4g} GB",
        source=table.take("source", str),
        engine=table.get("engine", str) or "llama.cpp",
        files=files,
        include=table.get("include", str) or (f"{folder}/*" if folder else _pattern(files, quant)),
        parts=parts,
        computed=stated is None,
        rules=tuple(_rule(rule) for rule in table.tables("types")),
        mix=mix,
        ftype=ftype,
        imatrix=imatrix,
        hparams=own,
        listing=table.get("listing", str),
        kld=table.get("kld", float),
        perplexity=table.get("perplexity", float),
    )
    table.done()
    if item.mix not in (None, "published", "modelled", MADE) or bool(item.rules) != (
        item.mix in ("published", "modelled")
    ):
        raise ProfileError(f'{table.where}: \'types\' come with mix = "published" or "modelled"')
    return item


def _mixes(table: catalog.Table) -> Iterator[KnownQuant]:
    """Files of one repository in llama-quantize's own mixes; `bytes` is what each comes to."""
    repo, source = table.take("repo", str), table.take("source", str)
    file, include = table.get("file", str), table.get("include", str)
    parts, imatrix = table.get("parts", int), table.get("imatrix", bool)
    own, listing = _hparams(table.table("hparams")), table.get("listing", str)
    sizes = table.table("bytes")
    table.done()
    for quant in sizes.keys():  # noqa: SIM118  a Table, not a dict
        size = sizes.take(quant, int)
        name = file.replace("{quant}", quant) if file else None
        files = _files(table, name, parts)
        pattern = include.replace("{quant}", quant) if include else None
        yield KnownQuant(
            quant=quant,
            repo=repo,
            size_bytes=size,
            size_stated=f"about {size / GB:.4g} GB",
            source=source,
            files=files,
            include=pattern or _pattern(files, quant),
            parts=parts,
            computed=True,
            mix=MADE,
            ftype=_ftype(table, quant),
            imatrix=imatrix,
            hparams=own,
            listing=listing,
        )


def _published(table: catalog.Table) -> Published | None:
    if not table.keys():
        return None
    total: Any = table.take("total", object)
    rounding = 0
    if isinstance(total, str):
        match = _COUNT.fullmatch(total)
        if not match:
            raise ProfileError(f"{table.where}: 'total' must be a number or like \"30.5B\", found {total!r}")
        unit = _UNITS[match[3]]
        total = round(float(match[1]) * unit)
        rounding = max(unit // 10 ** len(match[2] or "") // 2, total // 200)
    elif not isinstance(total, int) or isinstance(total, bool):
        raise ProfileError(f"{table.where}: 'total' must be a number or like \"30.5B\", found {total!r}")
    parts = table.table("in_gguf")
    found = Published(
        total=total,
        rounding=rounding,
        active=table.get("active", str),
        source=table.take("source", str),
        in_gguf={key: parts.take(key, int) for key in parts.keys()},  # noqa: SIM118  a Table
    )
    table.done()
    return found


def _projector(table: catalog.Table, text: Mapping[str, Any]) -> Projector | None:
    if not table.keys():
        return None
    kind = table.get("type", str)
    hparams = _tower(table, kind, text) if kind else {}
    fixed, dynamic = table.get("tokens_per_image", int), table.get("pixels_per_token", int)
    if kind and fixed is dynamic is None:
        from plan_llama.models import images

        fixed, dynamic = images.cost(hparams) or (None, None)
    found = Projector(
        parameters=table.take("parameters", int),
        tokens_per_image=fixed,
        pixels_per_token=dynamic,
        source=table.take("source", str),
        kind=kind,
        hparams=hparams,
        file=table.get("file", str),
    )
    table.done()
    if (found.tokens_per_image is None) == (found.pixels_per_token is None):
        raise ProfileError(f"{table.where}: 'tokens_per_image' or 'pixels_per_token' is needed, not both")
    return found


def _tower(table: catalog.Table, kind: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """The header of the projector's file: its shapes, and the width of the text model."""
    from plan_llama.models.tables import TRAIT

    vision = table.table("vision")
    keys = {key: _hparam(vision, key) for key in vision.keys()}  # noqa: SIM118  a Table, not a dict
    named = {key if key.startswith(TRAIT) else f"vision.{key}": value for key, value in keys.items()}
    width = {"vision.projection_dim": text.get("embedding_length")}
    return {"has_vision_encoder": True, "projector_type": kind, **named, **width}


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


def _pattern(files: tuple[str, ...], quant: str) -> str:
    """What to download: the files, or whatever has the quant in its name where theirs are not known."""
    return include_pattern(files) if files else f"*{quant}*"


def _size(table: catalog.Table, stated: str | None) -> int:
    match = _SIZE.fullmatch(stated or "")
    if not match:
        raise ProfileError(f'{table.where}: \'size\' must be like "236 GB" or "432.80 GiB", found {stated!r}')
    return round(float(match[1]) * (GB if match[2] == "GB" else GIB))


def _ftype(table: catalog.Table, name: str) -> str:
    from plan_llama.models import quant_mix

    ftype = quant_mix.mix_name(name)
    if ftype is None:
        raise ProfileError(f"{table.where}: llama-quantize makes no {name!r}; 'ftype' says which mix it is")
    return ftype


def _computed_size(
    table: catalog.Table, shapes: tuple[str, Mapping[str, Any], int], ftype: str, imatrix: bool | None
) -> int:
    from plan_llama.models import quant_mix

    architecture, hparams, vocab_size = shapes
    try:
        tensors = quant_mix.tensors_of(architecture, hparams, vocab_size, ftype, imatrix=imatrix)
    except (ModelError, ProfileError) as error:
        raise ProfileError(f"{table.where}: {error.line()}") from error
    if tensors is None:
        raise ProfileError(f"{table.where}: no tensor table for architecture {architecture!r}")
    return quant_mix.file_size(tensors, vocab_size=vocab_size).total_bytes


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
