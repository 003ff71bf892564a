"""How large the images are that a vision tower gets, and how many tokens they become.

Mirrors clip_model_loader::load_hparams and clip_hparams (tools/mtmd/clip.cpp, clip-model.h), and the sizes that
tools/mtmd/mtmd-image.cpp scales images to, of llama.cpp b11434. `hparams` are the header's keys without `clip.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What the engine has for a type of projector; tokens are those of one image."""

    merge: int
    merge_key: str = ""  # the header's key that overrides `merge`
    tokens: tuple[int, int] | None = None  # fewest and most; None: every image is scaled to one size
    warmup_tokens: int = 0  # 0: the warm-up is the largest image
    pixel_keys: bool = False  # the header says how many pixels an image may have, and no option changes it
    batches: bool = False  # several images of one size in one graph
    row_ends: bool = False  # a token behind each row but the last
    non_causal: bool = False  # an image must fit into one micro-batch


_SPATIAL, _SCALE = "vision.spatial_merge_size", "vision.projector.scale_factor"
_QWEN = _Rule(merge=2, merge_key=_SPATIAL, tokens=(8, 4096), warmup_tokens=46 * 46)
_RULES = {
    "gemma3": _Rule(merge=4, merge_key=_SCALE, non_causal=True),
    "gemma4v": _Rule(
        merge=3, merge_key=_SCALE, tokens=(70, 1120), warmup_tokens=256, batches=True, non_causal=True
    ),
    "glm4v": _QWEN,
    "internvl": _Rule(merge=1, merge_key=_SCALE, batches=True),
    # the header has the limits in pixels; without them 2 to 4,096 tokens
    "kimik25": _Rule(merge=1, merge_key=_SCALE, tokens=(2, 4096), pixel_keys=True),
    "kimivl": _Rule(merge=1, merge_key=_SCALE, tokens=(8, 1024), warmup_tokens=256),
    "llama4": _Rule(merge=1, merge_key=_SCALE),
    "minimax_m3": _Rule(merge=2, merge_key=_SPATIAL, tokens=(8, 576), warmup_tokens=256),
    "pixtral": _Rule(merge=1, merge_key=_SPATIAL, tokens=(8, 1024), warmup_tokens=256, row_ends=True),
    "qwen2vl_merger": _QWEN,
    "qwen2.5vl_merger": _QWEN,
    "qwen3vl_merger": _QWEN,
}
BATCH_TOKENS = 1024  # --mtmd-batch-max-tokens
# mtmd_decode_use_non_causal: the small Gemma 4 read images causally
_CAUSAL_WIDTHS = (1536, 2560)


@dataclass(frozen=True, slots=True)
class Image:
    """So many images of one size, in pixels, that go through the tower together."""

    width: int
    height: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A tower's images: `warmup` is what the engine reserves for, `largest` what may come."""

    merge: int
    warmup: Image
    largest: Image
    tokens: int  # of one of the largest
    fewest_tokens: int
    most_tokens: int  # the limit, of which the largest image has as many as make a rectangle
    dynamic: bool  # images keep their shape, and cost what they are large
    non_causal: bool


def kind(hparams: Mapping[str, Any]) -> str:
    """The type of a projector, by the engine's name."""
    found = hparams.get("projector_type") or hparams.get("vision.projector_type")
    return found if isinstance(found, str) else ""


def cost(hparams: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    """(tokens of every image, None), or (None, pixels of a token); None for a type that is not described here."""
    found = limits(hparams)
    if found is None:
        return None
    side = hparams["vision.patch_size"] * found.merge
    return (None, side**2) if found.dynamic else (found.tokens, None)


def limits(
    hparams: Mapping[str, Any],
    *,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    ubatch: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Limits | None:
    """The images of a projector; None for a type that is not described here, or a header without its sizes.

    `max_tokens` and `min_tokens` are --image-max-tokens and --image-min-tokens. Where an image must fit into one
    micro-batch, llama-server caps it there (tools/server/server-context.cpp, load_model).
    """
    rule = _RULES.get(kind(hparams))
    patch, size = _number(hparams, "vision.patch_size"), _number(hparams, "vision.image_size")
    if rule is None or not patch or not size:
        return None
    merge = (_number(hparams, rule.merge_key) if rule.merge_key else 0) or rule.merge
    side = patch * merge
    non_causal = rule.non_causal and not (
        rule.batches and _number(hparams, "vision.projection_dim") in _CAUSAL_WIDTHS
    )
    if rule.tokens is None:
        tokens = (size // side) ** 2
        together = max(1, batch_tokens // max(1, tokens)) if rule.batches else 1
        only = Image(size, size, together)
        return Limits(
            merge=merge,
            warmup=Image(size, size),
            largest=only,
            tokens=tokens,
            fewest_tokens=tokens,
            most_tokens=tokens,
            dynamic=False,
            non_causal=non_causal,
        )
    stated = [_number(hparams, f"vision.image_{name}_pixels") // side**2 for name in ("min", "max")]
    if rule.pixel_keys and all(stated):
        fewest, most = stated
    else:
        fewest, most = min_tokens or rule.tokens[0], max_tokens or rule.tokens[1]
    warm, cap = isqrt(rule.warmup_tokens), max_tokens
    if non_causal and ubatch is not None and most > ubatch:
        most = cap = ubatch
    if cap is not None and rule.warmup_tokens > cap:
        warm = max(1, isqrt(cap))
    across, down = _rectangle(most)
    tokens = across * down
    start = warm * side if warm else isqrt(most * side**2)
    return Limits(
        merge=merge,
        warmup=Image(start, start),
        largest=Image(across * side, down * side, max(1, batch_tokens // tokens) if rule.batches else 1),
        tokens=tokens + (down - 1 if rule.row_ends else 0),
        fewest_tokens=min(fewest, tokens),
        most_tokens=most,
        dynamic=True,
        non_causal=non_causal,
    )


def _number(hparams: Mapping[str, Any], key: str) -> int:
    value = hparams.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def _rectangle(tokens: int) -> tuple[int, int]:
    """The image nearest to a square that has most of so many tokens: the area counts, not the shape."""
    best = (isqrt(tokens), isqrt(tokens))
    for across in range(best[0], max(1, best[0] // 2), -1):
        down = tokens // across
        if across * down > best[0] * best[1] and down <= 2 * across:
            best = (down, across)
    return best
