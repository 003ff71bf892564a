"""Names and sizes of the catalog's files, against what was listed of their repositories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plan_llama import catalog
from plan_llama.models import catalog_models, known_models, quant_mix, tables
from plan_llama.models.catalog_models import MADE, KnownModel
from plan_llama.models.types import Tensor
from plan_llama.units import GB, GIB
from tests.slow import slow_but

DATA = Path(__file__).parents[2] / "data" / "published_sizes"
LISTED: dict[str, dict[str, tuple[int, float]]] = json.loads((DATA / "listing.json").read_text())
LISTING = "https://github.com/AtomicBot-ai/atomic-chat-model-catalog"
MODELS = {path.stem: path for path in sorted((catalog.root() / "models").glob("*.toml"))}
# Bytes as somebody read them from the hub, or as the publisher's page states them with two decimals.
EXACT = [
    ("qwen3.8-27b", "UD-IQ4_XS", 14_252_845_984),
    ("glm-5.3", "UD-IQ2_M", 238_577_585_701),
    ("glm-5.3", "UD-Q3_K_XL", 342_965_976_992),
    ("glm-5.3", "UD-Q4_K_XL", 467_289_116_837),
    ("glm-5.3", "Q8_0", 801_357_677_216),
    ("glm-5.3-flash", "UD-IQ1_S", 93.09 * GB),
    ("qwen3.8-flash-next", "UD-IQ4_XS", 87.24 * GIB),
    ("qwen3.8-flash-next", "UD-Q4_K_XL", 103.7 * GIB),
]


def weights(model: str) -> dict[tuple[str, str], int]:
    """What the tensors of each modelled file come to, by quant and repository."""
    known = catalog_models.model(model)
    plain: dict[tuple[int, int], tuple[Tensor, ...]] = {}
    found = {}
    for item in known.quants:
        if item.mix in (None, MADE):
            continue
        hparams = {**known.hparams, **item.hparams}
        key = (hparams["block_count"], hparams.get("nextn_predict_layers", 0))
        if key not in plain:
            named = tables.tensors(known.architecture, hparams, known.vocab_size)
            assert named is not None
            plain[key] = quant_mix.converted(known.architecture, named)
        typed = (
            Tensor(t.name, catalog_models.type_of(known.architecture, t, item.rules), t.shape)
            for t in plain[key]
        )
        found[item.quant, item.repo] = quant_mix.file_size(typed, vocab_size=known.vocab_size).total_bytes
    return found


@pytest.mark.parametrize("model", MODELS)
def test_files_that_were_listed(model: str) -> None:
    """The name is there, in as many parts, and the size is the listed one within its rounding and one per cent."""
    known = known_models.parse(model, MODELS[model])
    for item in known.quants:
        if LISTING not in (item.listing, item.source):
            continue
        parts, gibibytes = LISTED[item.repo][item.files[0]]
        assert parts == len(item.files), item.quant
        rounding = 0.05 * GIB * parts if gibibytes >= 1 else 0.05 * GIB / 1024
        assert abs(item.size_bytes - gibibytes * GIB) <= rounding + 0.005 * item.size_bytes, item.quant


@pytest.mark.parametrize("model", slow_but(MODELS, *list(MODELS)[::8]))
def test_modelled_types_come_to_the_published_size(model: str) -> None:
    known: KnownModel = catalog_models.model(model)
    for (quant, repo), total in weights(model).items():
        (item,) = (item for item in known.quants if (item.quant, item.repo) == (quant, repo))
        close = 0.0025 if item.mix == "published" else 0.01
        assert total == pytest.approx(item.size_bytes, rel=close), (quant, repo)


@pytest.mark.parametrize(("model", "quant", "size"), EXACT)
def test_sizes_that_are_known_to_the_byte(model: str, quant: str, size: float) -> None:
    item = catalog_models.model(model).named(quant)
    assert item is not None
    assert item.size_bytes == pytest.approx(size, rel=0.005)


def test_most_files_were_looked_up() -> None:
    """Those that were not say so in the plan."""
    items = [item for known in catalog_models.list_models() for item in known.quants]
    looked_up = [item for item in items if item.listing or not item.computed]
    assert len(looked_up) >= 0.9 * len(items)
