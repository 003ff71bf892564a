"""What the memory model needs to know of a model, worked out once and used for every placement."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from plan_llama.errors import UsageError
from plan_llama.memory.graphs import GRAPHS, graph_of
from plan_llama.memory.repack import repacked_bytes
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, padded_bytes
from plan_llama.memory.windows import Windows, cached_layers, windows
from plan_llama.models.spec import EXPERT, block_of
from plan_llama.models.types import ModelSpec

if TYPE_CHECKING:
    from plan_llama.memory.batch import Batch
    from plan_llama.memory.caches import CacheLayer
    from plan_llama.memory.graph_room import Count
    from plan_llama.memory.projector import Projector
    from plan_llama.memory.quantity import Guards
    from plan_llama.memory.recording import Recording
    from plan_llama.memory.types import LazyMode, Override
    from plan_llama.memory.weights import Moves, Placement

# llm_tensor_info of src/llama-arch.cpp: looked up by row, so always on the host
INPUT_TENSORS = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")

# What loaders take of the blocks for drafting though nobody drafts: tensors that they create without the flag that
# skips those blocks (src/models/*.cpp, b11434).
_LOADED_OF_DRAFTS = {
    "glm-dsa": re.compile(r"\.exp_probs_b\.bias$"),
    "deepseek32": re.compile(r"\.exp_probs_b\.bias$"),
    "step35": re.compile(
        r"\.(attn_[qk]_norm|attn_gate|ffn_gate|ffn_up|ffn_down|nextn\.shared_head_(head|norm))\.weight$"
    ),
}
# A pattern that is nothing but this literal start and what follows it matches in one block only.
_ONE_BLOCK = re.compile(r"blk\\\.([0-9]{1,4})\\\.(?![?*+{])(?:[^|()]|\([^()]*\))*")

_NUMBER = re.compile(r"(?:blk\.|(?<=\.))[0-9]+\.")

_LAZY_TENSORS = ("per_layer_token_embd.",)
_LAZY_BYTES = 4 << 30

# types of K and V, flash attention, V beside a latent K, tokens of a draft
CacheKey = tuple[str, str, bool, bool, int]


class ModelTable:
    """A model's tensors by block, and which of them a `-ot` pattern names. Make one per model; it remembers."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.blocks = spec.blocks
        self.layers = spec.layers
        self.block_of: tuple[int | None, ...] = tuple(block_of(tensor) for tensor in spec.tensors)
        self.by_name = {tensor.name: index for index, tensor in enumerate(spec.tensors)}
        self._stored: dict[BackendKind, tuple[int, ...]] = {}
        self._repacked: dict[frozenset[str], tuple[int | None, ...]] = {}
        self._least: dict[frozenset[str], int] = {}
        self._matches: dict[str, tuple[int, ...]] = {}
        self.cache_layers: dict[CacheKey, tuple[CacheLayer, ...]] = {}
        self.cache_makes: dict[CacheKey, tuple[tuple[CacheLayer, tuple[int, ...]], ...]] = {}
        self.placements: dict[object, Placement] = {}
        self.batches: dict[Batch, int] = {}  # what of a batch decides its graph, numbered
        self.batch_kinds: dict[object, int] = {}
        self.layer_kinds: dict[object, int] = {}  # what makes placed layers alike, numbered
        self.shapes: dict[object, int] = {}  # what decides a placement's graph, numbered
        self.moves: dict[tuple[Override, ...], Moves] = {}
        self._loaded: dict[bool, tuple[bool, ...]] = {}
        self._block_sums: dict[tuple[BackendKind, bool], tuple[int, ...]] = {}
        self.probed: dict[object, bool] = {}  # whether flash attention is given up, by kind of placement
        self.counts: dict[int, list[tuple[Guards, Count]]] = {}  # of tensors in a graph, by kind of batch
        self.recordings: dict[object, list[Recording]] = {}  # of compute buffers, by kind of placement
        self.draft = ModelTable(spec.draft) if spec.draft else None

    @cached_property
    def projector(self) -> Projector | None:
        """The model's projector, where one is to be loaded."""
        if self.spec.projector is None:
            return None
        from plan_llama.memory.projector import Projector

        return Projector(self.spec.projector)

    @cached_property
    def windows(self) -> Windows:
        """The model's sliding windows."""
        return windows(self.spec)

    @cached_property
    def block_tensors(self) -> tuple[tuple[int, ...], ...]:
        """The tensors (by index) of each block."""
        found: list[list[int]] = [[] for _ in range(self.blocks)]
        for index, block in enumerate(self.block_of):
            if block is not None and block < self.blocks:
                found[block].append(index)
        return tuple(tuple(items) for items in found)

    @cached_property
    def loose(self) -> tuple[int, ...]:
        """The tensors (by index) outside of blocks."""
        return tuple(index for index, block in enumerate(self.block_of) if block is None)

    def loaded(self, *, draft_layers: bool) -> tuple[bool, ...]:
        """Whether each tensor is loaded: all but those of blocks that only drafting needs."""
        if draft_layers not in self._loaded:
            last = self.blocks if draft_layers else self.layers
            always = _LOADED_OF_DRAFTS.get(self.spec.architecture)
            self._loaded[draft_layers] = tuple(
                block is None or block < last or (always is not None and bool(always.search(tensor.name)))
                for tensor, block in zip(self.spec.tensors, self.block_of, strict=True)
            )
        return self._loaded[draft_layers]

    def block_sums(self, kind: BackendKind, *, draft_layers: bool) -> tuple[int, ...]:
        """Bytes, in a backend's buffer, of all that is loaded of the blocks before the n-th; for n from 0 on."""
        key = kind, draft_layers
        if key not in self._block_sums:
            stored, loaded = self.stored_bytes(kind), self.loaded(draft_layers=draft_layers)
            sizes = [0] * self.blocks
            for index, block in enumerate(self.block_of):
                if block is not None and loaded[index]:
                    sizes[block] += stored[index]
            self._block_sums[key] = tuple(accumulate(sizes, initial=0))
        return self._block_sums[key]

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """Each tensor's name within its block: `attn_q.weight`, `enc.attn_q.weight`, `posnet.conv1.weight`."""
        return tuple(_NUMBER.sub("", tensor.name, count=1) for tensor in self.spec.tensors)

    @cached_property
    def makes(self) -> tuple[int, ...]:
        """A number per block: equal where two have tensors of the same names, types and shapes."""
        seen: dict[object, int] = {}
        numbers = []
        for items in self.block_tensors:
            tensors = [self.spec.tensors[i] for i in items]
            key = frozenset(
                (self.suffixes[i], t.type.id, t.shape) for i, t in zip(items, tensors, strict=True)
            )
            numbers.append(seen.setdefault(key, len(seen)))
        return tuple(numbers)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """A number per block: equal where two blocks have the same graph.

        That is, tensors of the same names, types and shapes, the same values where the header has one per block
        (of a fraction only whether it is 0), both with a cache of their own or both without, and no difference that
        their architecture makes between them.
        """
        architecture = self.spec.architecture
        graph = graph_of(architecture) if architecture in GRAPHS else None
        # images enter the first layers of Qwen3-VL
        leading = max(graph.leading_layers if graph else 0, self.spec.int_param("n_deepstack_layers", 0))
        turns = graph.turns if graph else 1
        each = graph is not None and graph.each_layer_differs
        cached = cached_layers(self.spec)
        lists = [v for v in self.spec.hparams.values() if isinstance(v, tuple) and len(v) >= self.blocks]
        seen: dict[object, int] = {}
        numbers = []
        for il, tensors in enumerate(self.makes):
            key = (
                tensors,
                tuple(bool(v[il]) if isinstance(v[il], float) else v[il] for v in lists),
                (il if each else il < leading, il % turns, il < cached),
            )
            numbers.append(seen.setdefault(key, len(seen)))
        return tuple(numbers)

    @cached_property
    def lookup_bytes(self) -> int:
        """Bytes of what stays on the host at any number of layers: tables that are looked up by row, padded."""
        kind = CPU_KIND
        return sum(
            padded_bytes(tensor.nbytes, tensor.type, tensor.shape[0], kind)
            for tensor in self.spec.tensors
            if tensor.name.startswith(INPUT_TENSORS)
        )

    def lazy_bytes(self, mode: LazyMode) -> int:
        """Bytes of the tensors that are mapped and read row by row as they are needed, whatever the load mode.

        Source: TENSOR_READ_LAZY in src/models/gemma4.cpp and qwen4exp.cpp, and llama_model_loader::lazy_read::add
        (src/llama-model-loader.cpp), b11434: per-layer embeddings, by default only those of more than 4 GiB.
        """
        if mode == "off":
            return 0
        least = 0 if mode == "on" else _LAZY_BYTES
        sizes = (t.nbytes for t in self.spec.tensors if t.name.startswith(_LAZY_TENSORS))
        return sum(size for size in sizes if size > least)

    @cached_property
    def loaded_bytes(self) -> int:
        """Bytes of the tensors that are loaded onto devices: all but draft blocks and the token table."""
        return sum(
            tensor.nbytes
            for tensor, block in zip(self.spec.tensors, self.block_of, strict=True)
            if (block is None or block < self.layers) and not tensor.name.startswith("token_embd.")
        )

    @cached_property
    def expert_indices(self) -> tuple[tuple[int, ...], ...]:
        """The tensors (by index) of each layer that hold routed experts."""
        tensors = self.spec.tensors
        return tuple(
            tuple(i for i in self.block_tensors[il] if EXPERT.search(tensors[i].name))
            for il in range(self.layers)
        )

    @cached_property
    def expert_bytes(self) -> tuple[int, ...]:
        """Bytes of routed experts by layer."""
        tensors = self.spec.tensors
        return tuple(sum(tensors[i].nbytes for i in indices) for indices in self.expert_indices)

    def stored_bytes(self, kind: BackendKind) -> tuple[int, ...]:
        """What each tensor takes in a backend's buffer: its bytes, CUDA's row padding and alignment."""
        if kind not in self._stored:
            self._stored[kind] = tuple(
                padded_bytes(tensor.nbytes, tensor.type, tensor.shape[0], kind)
                for tensor in self.spec.tensors
            )
        return self._stored[kind]

    def repacked(self, isa: frozenset[str]) -> tuple[int | None, ...]:
        """What each tensor takes in the formats of a CPU with these instruction sets; None where it has none."""
        if isa not in self._repacked:
            found = repacked_bytes(self.spec.tensors, isa)
            self._repacked[isa] = tuple(
                None if tensor.name.startswith(INPUT_TENSORS) else size
                for tensor, size in zip(self.spec.tensors, found, strict=True)
            )
        return self._repacked[isa]

    def least_bytes(self, isa: frozenset[str]) -> int:
        """What the weights take at the least, wherever they are: in the file's types or, for a CPU with these
        instruction sets, in its formats; without tensors that may be read row by row."""
        if isa not in self._least:
            formats, loaded = self.repacked(isa), self.loaded(draft_layers=False)
            sizes = (
                min(tensor.nbytes, size or tensor.nbytes)
                for tensor, size, taken in zip(self.spec.tensors, formats, loaded, strict=True)
                if taken
            )
            self._least[isa] = sum(sizes) - self.lazy_bytes("on")
        return self._least[isa]

    @property
    def has_output(self) -> bool:
        """Whether the head has a matrix of its own (else it is tied to the token table)."""
        return "output.weight" in self.by_name

    def matches(self, pattern: str) -> tuple[int, ...]:
        """The tensors whose name a `-ot` pattern finds (std::regex_search). Raises UsageError for a bad pattern."""
        if pattern not in self._matches:
            try:
                search = re.compile(pattern).search
            except re.error as error:
                raise UsageError(f"-ot: {pattern!r} is not a regular expression ({error})") from error
            block = _ONE_BLOCK.fullmatch(pattern)
            names: Iterable[tuple[str, int]] = self.by_name.items()
            if block is not None and int(block[1]) < self.blocks:
                indices = sorted((*self.block_tensors[int(block[1])], *self.loose))
                names = ((self.spec.tensors[i].name, i) for i in indices)
            self._matches[pattern] = tuple(i for name, i in names if search(name))
        return self._matches[pattern]
