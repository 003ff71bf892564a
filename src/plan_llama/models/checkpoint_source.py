"""From what a user calls a model to the checkpoints that vLLM could be given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from plan_llama import catalog
from plan_llama.errors import ModelError, ProfileError, UsageError
from plan_llama.models import catalog_models, unpublished
from plan_llama.models.catalog_models import KnownModel
from plan_llama.models.checkpoints import PLAIN, Checkpoint, Quantisation, Scheme, quantisation_of
from plan_llama.models.config import read_config
from plan_llama.models.config_folder import spec_of
from plan_llama.models.resolve import spelled
from plan_llama.models.types import ModelSpec

_HUB = "https://huggingface.co/"
_METHODS = {
    "fp8-block": "fp8",
    "fp8-tensor": "fp8",
    "fp8-channel": "compressed-tensors",
    "int4": "compressed-tensors",
    "int8": "compressed-tensors",
    "nvfp4": "modelopt_fp4",
    "mxfp4": "gpt_oss_mxfp4",
    "awq": "awq",
    "gptq": "gptq",
}
_NO_GGUF = (
    "vLLM reads GGUF only through vllm-gguf-plugin, which maps few architectures (none with sparse attention): a plan "
    "needs the model's original checkpoint"
)


def checkpoints(text: str, quant: str | None = None) -> tuple[Checkpoint, ...]:
    """The checkpoints of a model, best first; one where `text` or `quant` says which.

    `text` is a catalog name, a folder with a config.json, or hf:OWNER/REPO. Raises UsageError for a GGUF and for words
    that mean nothing, ModelError for a model whose checkpoints are not described.
    """
    text = spelled(text)
    path = Path(text)
    scheme = text.partition(":")[0].lower()
    if (
        text.lower().endswith(".gguf")
        or scheme == "ollama"
        or (path.is_file() and path.name != "config.json")
    ):
        raise UsageError(
            f"--model {text}: {_NO_GGUF}", hint="--engine llama.cpp, or hf:OWNER/REPO of the original"
        )
    if scheme == "hf":
        return (_of_hub(text),)
    if path.name == "config.json" and path.is_file():
        path = path.parent
    known = catalog_models.find(text)
    if known is None:
        if not (path / "config.json").is_file():
            if path.is_dir():
                raise UsageError(f"--model {text}: a folder without a config.json", hint=_NO_GGUF)
            known = catalog_models.get(text)  # raises with the nearest names
        else:
            return (of_folder(path),)
    found = tuple(_of_known(known))
    if quant is None:
        return found
    chosen = tuple(item for item in found if item.spec.quant.lower() == quant.lower())
    if not chosen:
        have = ", ".join(item.spec.quant for item in found)
        raise UsageError(
            f"--quant {quant}: no checkpoint of {known.name} for vLLM is known in it", hint=f"there is {have}"
        )
    return chosen


def of_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Only config.json is read; the sizes of safetensors files are added up."""
    config = read_config(folder / "config.json")
    made = from_config(
        config, folder.resolve().name, str(folder), local=True, where=str(folder / "config.json")
    )
    try:
        sizes = [entry.stat().st_size for entry in folder.glob("*.safetensors")]
    except OSError:
        sizes = []
    present = bool(sizes)
    return replace(
        made,
        size_bytes=sum(sizes) or None,
        spec=replace(
            made.spec, present=present, data_note=None if present else "no safetensors files are in it"
        ),
    )


def published(repo: str) -> Checkpoint | None:
    """The checkpoint of that repository, by what the catalog knows of it; None where it knows nothing.

    Raises ModelError for one that it knows and does not describe.
    """
    row = next((row for row in _profile()[0] if row["repo"].lower() == repo.lower()), None)
    if row is not None:
        found = _of_known(catalog_models.model(row["model"]))
        return next(item for item in found if item.location == row["repo"])
    known = catalog_models.find(repo)
    if known is None or known.source.removeprefix(_HUB).strip("/").lower() != repo.lower():
        return None
    return next(iter(_of_known(known)))


def from_config(
    config: Mapping[str, Any], name: str, location: str, *, local: bool, where: str
) -> Checkpoint:
    """The checkpoint that a config.json describes. Raises ModelError where it is not described here."""
    quantisation = quantisation_of(config, where)
    spec = spec_of(config, name, "BF16", where=where, folder=Path(location))
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    dtype = next(
        (str(part[key]) for part in (config, inner) for key in ("dtype", "torch_dtype") if part.get(key)),
        "bfloat16",
    )
    return Checkpoint(
        spec=_named(spec, name, quantisation, location if local else None),
        location=location,
        local=local,
        quantisation=quantisation,
        dtype=dtype.removeprefix("torch."),
        multimodal=isinstance(text, Mapping),
    )


def format_name(quantisation: Quantisation) -> str:
    """What people call the format."""
    if quantisation.scheme == "none":
        return "BF16"
    return {"awq": "AWQ", "gptq": "GPTQ", "int4": "INT4", "int8": "INT8"}.get(
        quantisation.scheme, quantisation.scheme.partition("-")[0].upper()
    )


def _named(spec: ModelSpec, name: str, quantisation: Quantisation, path: str | None) -> ModelSpec:
    return replace(
        spec,
        name=name,
        quant=format_name(quantisation),
        path=path,
        made_with=(),
        source="file" if path else "modelled",
    )


def _of_hub(text: str) -> Checkpoint:
    from plan_llama.models import remote

    found, config = remote.hub_config(text)
    name = found.repo.partition("/")[2]
    made = from_config(config, name, found.repo, local=False, where=f"hf:{found.full}/config.json")
    return replace(
        made,
        size_bytes=found.weights_bytes or None,
        note=f"read from the config.json of {found.full}",
        revision=found.revision if found.revision != "main" else None,
    )


def _of_known(known: KnownModel) -> Iterator[Checkpoint]:
    rows, other = _profile()
    mine = [row for row in rows if row["model"] == known.id]
    spec = replace(unpublished.of_known(known, "BF16"), made_with=())
    multimodal = known.projector is not None
    if mine:
        for row in mine:
            made = row["quantisation"]
            yield Checkpoint(
                spec=replace(spec, quant=row["format"], path=None, source="catalog"),
                location=row["repo"],
                local=False,
                quantisation=made,
                multimodal=multimodal,
            )
        return
    source = known.source or ""
    repo = source.removeprefix(_HUB).strip("/")
    if (
        known.id in other
        or not source.startswith(_HUB)
        or repo.count("/") != 1
        or repo.lower().endswith("gguf")
    ):
        raise ModelError(
            f"{known.name}: the format of its original checkpoint is not described here",
            hint=f"--model hf:{repo} reads its config.json"
            if repo.count("/") == 1
            else "--model hf:OWNER/REPO",
        )
    yield Checkpoint(
        spec=replace(spec, quant="BF16", path=None, source="catalog"),
        location=repo,
        local=False,
        multimodal=multimodal,
        note=f"{repo} is taken to hold 16-bit weights; --model hf:{repo} asks it",
    )


def _profile() -> tuple[list[dict[str, Any]], frozenset[str]]:
    path = catalog.root() / "engines" / "vllm" / "checkpoints.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("engine", str)
    table.take("source", str)
    rows: list[dict[str, Any]] = []
    for row in table.tables("checkpoint"):
        scheme = row.get("scheme", str)
        quantisation = PLAIN
        if scheme is not None:
            if scheme not in get_args(Scheme):
                raise ProfileError(f"{row.where}: scheme {scheme!r} is not known")
            default = {"fp8-block": 128, "nvfp4": 16, "mxfp4": 32}.get(scheme, 0)
            quantisation = Quantisation(
                method=_METHODS[scheme],
                scheme=scheme,  # type: ignore[arg-type]  # one of them
                group=row.get("group", int) or default,
                skipped=row.strings("skipped"),
                activations=scheme.startswith(("fp8", "nvfp4")),
            )
        rows.append(
            {
                "model": row.take("model", str),
                "repo": row.take("repo", str),
                "format": row.take("format", str),
                "quantisation": quantisation,
            }
        )
        row.done()
    other = frozenset(name for row in table.tables("other") for name in row.strings("models"))
    table.done()
    return rows, other
