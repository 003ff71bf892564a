"""A config.json as the converter sees it, and the keys that it writes for every text model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plan_llama.errors import ModelError

# Values of enum llama_rope_scaling_type and enum llama_expert_gating_func_type (src/llama-hparams.h, b11434).
SOFTMAX, SIGMOID, SOFTMAX_WEIGHT, SQRT_SOFTPLUS = 1, 2, 3, 4
_GATING = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "sqrtsoftplus": SQRT_SOFTPLUS}
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_REAL = 1e12  # the largest numbers of a config are bases of rope, 1e9 and less


@dataclass(frozen=True, slots=True)
class Config:
    """A config with its text part merged over the rest (TextModel.__init__ in conversion/base.py)."""

    values: Mapping[str, Any]
    where: str

    def first(self, *keys: str) -> Any:
        """The value of the first key that is there; None where none is, or where it is null."""
        return next((self.values[key] for key in keys if key in self.values), None)

    def number(self, *keys: str, default: int | None = None) -> int:
        """A whole number. Raises ModelError where it is missing (without `default`) or is none."""
        value = self.first(*keys)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
            raise ModelError(
                f"{self.where}: '{' or '.join(keys)}' must be a whole number, found {str(value)[:40]!r}"
            )
        return value

    def real(self, *keys: str, default: float | None = None) -> float:
        """A number. Raises ModelError where it is missing (without `default`) or is none."""
        value = self.first(*keys)
        if value is None and default is not None:
            return default
        return real(value, self.where, " or ".join(keys))

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; `default` where it is missing or null."""
        value = self.first(key)
        return default if value is None else bool(value)

    def has(self, key: str) -> bool:
        """Whether a key is there and not null."""
        return self.values.get(key) is not None

    def within(self, key: str) -> Config:
        """The part of the config under a key. Raises ModelError where it is none."""
        part = self.values.get(key)
        if not isinstance(part, Mapping):
            raise ModelError(f"{self.where}: '{key}' must be a JSON object")
        return Config(part, f"{self.where}: {key}")

    @property
    def layers(self) -> int:
        """Blocks without those for next-token prediction. Raises ModelError for too many."""
        count = self.number("n_layers", "num_hidden_layers", "n_layer", "num_layers")
        if not 0 < count <= _MAX_LAYERS:
            raise ModelError(f"{self.where}: {count:,} layers, expected 1 to {_MAX_LAYERS}")
        return count

    @property
    def heads(self) -> int:
        """Query heads. Raises ModelError for none."""
        return self.number("num_attention_heads", "n_head", "n_heads") or self._none("num_attention_heads")

    @property
    def head_dim(self) -> int:
        """Elements of a head: as stated, else the width by the heads."""
        return self.number("head_dim", default=0) or self.number("hidden_size", "n_embd", "dim") // self.heads

    def layer_types(self) -> tuple[str, ...] | None:
        """The kind of each layer ("full_attention", "sliding_attention", …) where the config lists them."""
        types = self.values.get("layer_types")
        if not isinstance(types, list) or len(types) < self.layers:
            return None
        return tuple(str(kind) for kind in types[: self.layers])

    @property
    def rope(self) -> Mapping[str, Any]:
        """The rope parameters, older spellings brought under today's names."""
        found = self.values.get("rope_parameters", self.values.get("rope_scaling"))
        rope: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {}
        if "full_attention" in rope or "sliding_attention" in rope:
            return rope
        names = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta")
        local = (
            "local_rope_theta",
            "rope_local_theta",
            "rope_theta_local",
            "swa_rope_theta",
            "rope_local_base_freq",
        )
        if (theta := self.first(*local)) is not None:
            rope["sliding_attention"] = {"rope_theta": theta}
        older = {
            "rope_theta": self.first(*names, "rotary_emb_base"),
            "rope_type": rope.get("type"),
            "partial_rotary_factor": self.first("partial_rotary_factor", "rope_pct", "rope_percent"),
            "original_max_position_embeddings": self.first("original_max_position_embeddings"),
        }
        rope.update({key: value for key, value in older.items() if key not in rope and value is not None})
        return rope

    @property
    def rope_full(self) -> Mapping[str, Any]:
        """The rope parameters of layers with full attention."""
        rope = self.rope
        full = rope.get("full_attention", rope)
        return full if isinstance(full, Mapping) else {}

    def rotated(self, default: float = 1.0) -> int:
        """Elements of a head that turn with the position. Raises ModelError for a share above 1."""
        share = real(self.rope.get("partial_rotary_factor", default), self.where, "partial_rotary_factor")
        if not 0 <= share <= 1:
            raise ModelError(f"{self.where}: 'partial_rotary_factor' must be from 0 to 1, found {share}")
        return int(self.head_dim * share)

    def _none(self, key: str) -> int:
        raise ModelError(f"{self.where}: '{key}' is 0")


Mapper = Callable[[Config], dict[str, Any]]
Architecture = str | Callable[[Config], str]  # some configs of one class become different architectures


def real(value: object, where: str, key: str) -> float:
    """A number as a float. Raises ModelError for anything else, and for one that no model has."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_REAL:
        return float(value)
    raise ModelError(f"{where}: '{key}' must be a number, found {str(value)[:40]!r}")


def base(c: Config) -> dict[str, Any]:
    """What the converter writes for every text model (TextModel.set_gguf_parameters)."""
    h: dict[str, Any] = {"block_count": c.layers}
    whole = {
        "context_length": (
            "max_position_embeddings",
            "n_ctx",
            "n_positions",
            "max_length",
            "max_sequence_length",
            "model_max_length",
        ),
        "embedding_length": ("hidden_size", "n_embd", "dim"),
        "feed_forward_length": (
            "prefix_dense_intermediate_size",
            "dense_intermediate_size",
            "intermediate_size",
            "n_inner",
            "hidden_dim",
        ),
        "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
        "attention.head_count_kv": ("num_key_value_heads", "n_kv_heads"),
    }
    h.update({key: c.number(*names) for key, names in whole.items() if _scalar(c.first(*names))})
    h.update(_rope(c))
    if c.first("rms_norm_eps", "norm_eps") is not None:
        h["attention.layer_norm_rms_epsilon"] = c.real("rms_norm_eps", "norm_eps")
    norms = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    if c.first(*norms) is not None:
        h["attention.layer_norm_epsilon"] = c.real(*norms)
    whole = {
        "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
        "expert_group_count": ("n_group",),
        "expert_group_used_count": ("topk_group",),
    }
    h.update({key: c.number(*names) for key, names in whole.items() if _scalar(c.first(*names))})
    scores = ("score_function", "scoring_func", "score_func", "moe_router_activation")
    if (gating := _GATING.get(str(c.first(*scores, "moe_router_activation_func")))) is not None:
        h["expert_gating_func"] = gating
    if c.has("head_dim"):
        h["attention.key_length"] = h["attention.value_length"] = c.head_dim
    return h


def _scalar(value: object) -> bool:
    """Some configs list a number per layer; their mappers write those keys themselves."""
    return value is not None and not isinstance(value, list)


def _rope(c: Config) -> dict[str, Any]:
    h: dict[str, Any] = {}
    full = c.rope_full
    kind, factor = full.get("rope_type"), full.get("factor")
    if kind in ("linear", "yarn") and factor is not None:
        h["rope.scaling.type"] = kind
        h["rope.scaling.factor"] = real(factor, c.where, "factor")
    if kind == "yarn" and factor is not None:
        if (original := full.get("original_max_position_embeddings")) is not None:
            h["rope.scaling.original_context_length"] = int(real(original, c.where, "original_max…"))
        names = {
            "extrapolation_factor": "yarn_ext_factor",
            "attention_factor": "yarn_attn_factor",
            "attn_factor": "yarn_attn_factor",
            "beta_fast": "yarn_beta_fast",
            "beta_slow": "yarn_beta_slow",
        }
        for name, key in names.items():
            if full.get(name) is not None:
                h.setdefault(f"rope.scaling.{key}", real(full[name], c.where, name))
    elif kind in ("su", "longrope"):
        h["rope.scaling.type"] = "longrope"
    sections = c.rope.get("mrope_section")
    if isinstance(sections, list) and all(isinstance(part, int) for part in sections):
        h["rope.dimension_sections"] = tuple((*sections, 0, 0, 0, 0)[:4])
    if (theta := full.get("rope_theta")) is not None:
        h["rope.freq_base"] = real(theta, c.where, "rope_theta")
    local = c.rope.get("sliding_attention")
    if isinstance(local, Mapping) and local.get("rope_theta") is not None:
        h["rope.freq_base_swa"] = real(local["rope_theta"], c.where, "rope_theta")
    return h


def sliding_pattern(c: Config) -> tuple[bool, ...] | None:
    """Which layers have a sliding window, where the config lists the layers' kinds."""
    types = c.layer_types()
    return None if types is None else tuple(kind == "sliding_attention" for kind in types)


def llama3_rope(c: Config) -> bool:
    """Whether the converter adds a table of frequency factors (LlamaModel.generate_extra_tensors)."""
    return str(c.rope_full.get("rope_type", "")).lower() == "llama3"


def traits(**present: bool) -> dict[str, Any]:
    """`tensors.*` keys for those that are true."""
    return {f"tensors.{name}": True for name, there in present.items() if there}
