"""What a Hugging Face repository offers, as text and as JSON: for `models hf:OWNER/REPO` and `inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plan_llama.errors import ModelError
from plan_llama.units import publisher_gb

if TYPE_CHECKING:  # at run time only where a hub is asked: it brings urllib
    from plan_llama.models.hub import Repository


def offered(model: str) -> Repository | None:
    """The repository of an `hf:` name; None for other names, and where only its files on this machine are known."""
    from plan_llama.models.resolve import spelled

    model = spelled(model)
    if not model.lower().startswith("hf:"):
        return None
    from plan_llama.models.remote import hub_repository

    try:
        return hub_repository(model)
    except ModelError:
        return None  # the model itself was found without the listing


def render(found: Repository) -> str:
    """The quants with their sizes, largest first, then the projectors."""
    return "\n".join(_lines(found)) + "\n"


def as_json(found: Repository) -> dict[str, Any]:
    """The same for programs."""
    return {
        "repo": found.repo,
        "revision": found.revision,
        "quants": [
            {
                "quant": item.quant,
                "size_bytes": item.size_bytes,
                "files": [file.path for file in item.files],
                "missing": list(item.missing),
            }
            for item in found.quants
        ],
        "projectors": [{"file": file.path, "size_bytes": file.size_bytes} for file in found.projectors],
        "listed_at": found.kept_at,
    }


def _lines(found: Repository) -> Iterator[str]:
    kept = f", as listed on {found.kept_at} ({found.why_kept})" if found.kept_at else ""
    yield f"{found.full}{kept}"
    for item in found.quants:
        parts = f"  {len(item.files)} files" if len(item.files) > 1 else ""
        missing = f"  {len(item.missing)} parts missing" if item.missing else ""
        yield f"  {item.quant:<14}{publisher_gb(item.size_bytes):>10}{parts}{missing}"
    for file in found.projectors:
        yield f"  {file.path}  {publisher_gb(file.size_bytes)}, a projector for images or sound"
    if not found.quants:
        what = publisher_gb(found.weights_bytes)
        yield f"  no GGUF; unconverted weights of {what}" if found.config else "  no GGUF"
