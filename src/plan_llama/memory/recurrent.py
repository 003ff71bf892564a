"""The state that recurrent layers keep per conversation, whatever its length.

Source: llama_hparams::n_embd_r, n_embd_s and ple_conv_state (src/llama-hparams.cpp), llama_memory_recurrent
(src/llama-memory-recurrent.cpp), create_memory (src/llama-model.cpp) and load_arch_hparams of src/models/*.cpp,
b11434: f32 rows per layer and sequence.
"""

from __future__ import annotations

from plan_llama.models.types import ModelSpec

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})  # no attention at all
_BOTH = frozenset({"falcon-h1"})  # every layer has a cache and a state
# every n-th layer attends, unless the header lists the recurrent ones
_INTERVAL = {"clef": 4, "qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
# recurrent where the header gives a layer no KV heads
_NO_HEADS = frozenset(
    {
        "bailingmoe3",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "plamo2",
    }
)
_NEMOTRON = frozenset({"nemotron_h", "nemotron_h_moe"})  # some layers are neither, but a feed-forward network
HYBRID = frozenset({*_BOTH, *_INTERVAL, *_NO_HEADS, *_NEMOTRON})

# Their states can be rolled back token by token: while drafting they keep one more for every token of a draft
# (llm_arch_supports_rs_rollback, src/llama-arch.cpp; n_rs_seq of llama_memory_recurrent).
_ROLLED_BACK = frozenset(
    {
        "bailingmoe3",
        "deepseek4",
        "glm5-next",
        "kimi-k3",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen4exp",
    }
)


def states_kept(spec: ModelSpec, drafts: int) -> int:
    """States of a sequence in the cache: one, and those that a draft of so many tokens may go back to."""
    return 1 + drafts if spec.architecture in _ROLLED_BACK else 1


def recurrent_layers(spec: ModelSpec) -> frozenset[int]:
    """The layers that keep a state instead of, or beside, a cache; blocks for drafting keep none."""
    architecture = spec.architecture
    layers = range(spec.layers)
    if architecture in RECURRENT or architecture in _BOTH:
        return frozenset(layers)
    if architecture in _INTERVAL:
        listed = spec.hparams.get("attention.recurrent_layers")
        if isinstance(listed, tuple):
            return frozenset(il for il in layers if il < len(listed) and listed[il])
        every = spec.int_param("full_attention_interval", _INTERVAL[architecture])
        return frozenset(il for il in layers if (il + 1) % every)
    if architecture in _NO_HEADS or architecture in _NEMOTRON:
        found = [il for il in layers if not kv_heads(spec, il)]
        if architecture in _NEMOTRON:
            found = [il for il in found if not spec.int_param("feed_forward_length", 0, layer=il)]
        return frozenset(found)
    return frozenset()


def kv_heads(spec: ModelSpec, layer: int) -> int:
    """Heads of keys and values of a layer; as many as of queries where the header does not say."""
    heads = spec.int_param("attention.head_count", 0, layer=layer)
    return spec.int_param("attention.head_count_kv", heads, layer=layer)


def state_elements(spec: ModelSpec, layer: int) -> tuple[int, ...]:
    """Elements of one sequence's convolution state, recurrent state and history, in a recurrent layer."""
    width = spec.int_param("embedding_length")
    heads = spec.int_param("attention.head_count", 0, layer=0)
    kernel = spec.int_param("ssm.conv_kernel", 0)
    if head := spec.int_param("wkv.head_size", 0):
        return spec.int_param("token_shift_count", 2) * width, width * head
    if cells := spec.int_param("shortconv.l_cache", 0):
        return (width * (cells - 1),)
    if head := spec.int_param("kda.head_dim", 0):
        return 3 * (kernel - 1 if kernel else 3) * heads * head, head * head * heads
    if spec.architecture == "minimax-01":  # a matrix per head
        head = spec.int_param("attention.key_length", width // max(1, heads))
        return (head * head * heads,)
    inner, state = spec.int_param("ssm.inner_size", 0), spec.int_param("ssm.state_size", 0)
    groups = spec.int_param("ssm.group_count", 0)
    found = (max(0, kernel - 1) * (inner + 2 * groups * state), state * inner)
    history = _history_elements(spec, layer)
    return (*found, history) if history else found


def _history_elements(spec: ModelSpec, layer: int) -> int:
    """What a layer with n-gram embeddings keeps for its convolution (qwen4exp)."""
    listed = spec.hparams.get("ple.layers")
    if not isinstance(listed, tuple) or layer not in listed:
        return 0
    reach = (spec.int_param("ple.conv_kernel") - 1) * spec.int_param("ple.ngram_size")
    streams = spec.int_param("hyper_connection.count")
    return reach * streams * spec.int_param("embedding_length")
