"""What a quant costs in quality: published figures, of the file itself or of its kind (profiles/quality.toml)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from plan_llama import catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Mean KL divergence from the 16-bit model; `measured_on` is another model where the file has no figure."""

    kl_divergence: float
    measured_on: str | None = None


@cache
def _of_kinds() -> tuple[str, dict[str, float]]:
    path = catalog.root() / "quality.toml"
    table = catalog.Table(catalog.load(path), str(path))
    table.take("schema", int)
    model = table.take("model", str)
    table.take("source", str)
    rows = table.table("kl_divergence")
    found = {name: rows.take(name, float) for name in sorted(rows.keys())}
    table.done()
    return model, found


def of(quant: str, kl_divergence: float | None) -> Quality | None:
    """A quant's published figure, its own where there is one; None for a recipe that nobody published figures of."""
    if kl_divergence is not None:
        return Quality(kl_divergence=kl_divergence)
    model, kinds = _of_kinds()
    found = kinds.get(quant.upper())
    return None if found is None else Quality(kl_divergence=found, measured_on=model)
