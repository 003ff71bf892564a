"""Which device holds each tensor, as llama.cpp places them.

Source: llama_model_base::load_tensors (src/llama-model.cpp), llama_model_loader::create_tensor
(src/llama-model-loader.cpp) and common/arg.cpp, b11434.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from typing import Any

from plan_llama.errors import UsageError
from plan_llama.memory.repack import repacked_bytes
from plan_llama.memory.repeats import Stretch, stretches
from plan_llama.memory.scheduler import CPU_KIND, BackendKind
from plan_llama.memory.table import INPUT_TENSORS, ModelTable
from plan_llama.memory.types import HOST, Override, Settings

# made once per device that has a layer (TENSOR_DUPLICATED)
_PER_DEVICE_TENSORS = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
# the head is no second copy of the token table: there is none, or it reads the table where it lies (src/models/*.cpp)
_NO_HEAD_COPY = frozenset(
    {
        *("bert", "eurobert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert"),
        *("nomic-bert-moe", "bitnet"),
    }
)

# outside the blocks, and placed as the first one is (llm_tensor_info of src/llama-arch.cpp: LAYER_REPEATING)
_FIRST_LAYER_TENSORS = (
    "per_layer_model_proj.",
    "per_layer_proj_norm.",
    "token_embd_norm.",
    "hrm.z_l_init",
    "conv1d.",
)

# Their loaders ask for the tied output before the token table, and so find none to share even on one device
# (src/models/gemma3n.cpp, gemma4.cpp).
_OUTPUT_FIRST = frozenset({"gemma3n", "gemma4"})

# Each of their layers makes views of its own of inputs that all share: on every device a copy for every layer, which
# stays under pipeline parallelism.
_EVERY_LAYER = frozenset({"graniteswitch", "minimax-m3", "t5", "t5encoder"})


@dataclass(frozen=True, kw_only=True)
class Moves:
    """What the `-ot` patterns of a command move away from their layer's device; the first match wins."""

    by_block: tuple[tuple[tuple[int, int], ...], ...]  # (tensor, device) of each block
    loose: Mapping[int, int]  # the device of tensors outside of blocks

    @cached_property
    def devices(self) -> frozenset[int]:
        """Where tensors of blocks are moved to."""
        return frozenset(device for moved in self.by_block for _, device in moved)

    @cached_property
    def _sums(self) -> dict[object, tuple[int, ...]]:
        return {}

    def sums(self, table: ModelTable, device: int, kind: BackendKind, draft_layers: bool) -> tuple[int, ...]:
        """Bytes, in a backend's buffer, of what the blocks before the n-th move to a device; for n from 0 on."""
        key = device, kind, draft_layers
        if key not in self._sums:
            stored, loaded = table.stored_bytes(kind), table.loaded(draft_layers=draft_layers)
            blocks = (
                sum(stored[index] for index, target in moved if target == device and loaded[index])
                for moved in self.by_block
            )
            self._sums[key] = tuple(accumulate(blocks, initial=0))
        return self._sums[key]

    @classmethod
    def of(cls, table: ModelTable, overrides: Sequence[Override]) -> Moves:
        """Raises UsageError for a pattern that is no regular expression."""
        device: dict[int, int] = {}
        for override in overrides:
            for index in table.matches(override.pattern):
                device.setdefault(index, override.device)
        by_block: list[list[tuple[int, int]]] = [[] for _ in range(table.blocks)]
        loose: dict[int, int] = {}
        for index in sorted(device):
            block = table.block_of[index]
            if block is None:
                loose[index] = device[index]
            else:
                by_block[block].append((index, device[index]))
        return cls(by_block=tuple(map(tuple, by_block)), loose=loose)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model's tensors and layers lie. Devices are GPU indices or HOST."""

    table: ModelTable
    layer_device: tuple[int, ...]  # by block: where its cache and attention are
    output_device: int
    moves: Moves
    loose: Mapping[int, int]  # the device of each tensor outside of blocks
    copies: tuple[tuple[int, int], ...]  # (tensor index, device) of tensors that exist a second time
    draft_layers: bool
    overridden: bool  # any tensor override switches pipeline parallelism off

    @cached_property
    def weight_bytes(self) -> dict[object, dict[int, int]]:
        """What was worked out of its weights, by the devices' kinds."""
        return {}

    @cached_property
    def traffic(self) -> dict[object, Any]:
        """What was worked out of what a token reads where, by the cache's types and place."""
        return {}

    @cached_property
    def left_out(self) -> tuple[int, ...]:
        """How many repeats of layers need not be built, in each place where some are left out."""
        return tuple(stretch.left_out for stretch in self.stretches if stretch.left_out)

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The layers, with those that are like others left out."""
        if self.table.spec.architecture in _EVERY_LAYER:
            return (Stretch(0, self.table.layers),)
        return stretches(self.kinds_of_layers)

    @cached_property
    def shape(self) -> int:
        """A number for what decides the graph: placements of one shape differ only in how many layers are left out."""
        built = tuple(
            (self.kinds_of_layers[stretch.first : stretch.first + stretch.built], bool(stretch.left_out))
            for stretch in self.stretches
        )
        return self.table.shapes.setdefault(built, len(self.table.shapes))

    @property
    def draft_shape(self) -> tuple[object, ...]:
        """The same of the first block for drafting."""
        il = self.table.layers
        return ("draft", self.layer_device[il], self.moves.by_block[il])

    @cached_property
    def kinds_of_layers(self) -> tuple[int, ...]:
        """A number per layer, equal where layers are alike: tensors, types and shapes, the devices of the layer and of
        its tensors, a window."""
        table, windowed = self.table, self.table.windows.layers
        kinds, suffixes, numbers = table.kinds, table.suffixes, table.layer_kinds
        found = []
        for il in range(table.layers):
            home = self.layer_device[il]
            moved = tuple(
                (suffixes[index], device) for index, device in self.moves.by_block[il] if device != home
            )
            key = kinds[il], home, moved, il in windowed
            found.append(numbers.setdefault(key, len(numbers)))
        return tuple(found)

    @cached_property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """Runs of blocks on one device: (first, the one after the last, device)."""
        spans: list[tuple[int, int, int]] = []
        for device, blocks in groupby(self.layer_device):
            first = spans[-1][1] if spans else 0
            spans.append((first, first + len(list(blocks)), device))
        return tuple(spans)

    @cached_property
    def device_of(self) -> tuple[int | None, ...]:
        """The device of each tensor of the model; None where it is not loaded."""
        loaded = self.table.loaded(draft_layers=self.draft_layers)
        found: list[int | None] = [
            (self.loose[index] if block is None else self.layer_device[block]) if taken else None
            for index, (block, taken) in enumerate(zip(self.table.block_of, loaded, strict=True))
        ]
        for moved in self.moves.by_block:
            for index, device in moved:
                if loaded[index]:
                    found[index] = device
        return tuple(found)


def _f32(value: float) -> float:
    """Rounds to single precision: the engine computes its split points in float."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@lru_cache(maxsize=1024)
def split_layers(
    blocks: int, gpu_layers: int, shares: tuple[float, ...], devices: tuple[int, ...]
) -> tuple[int, ...]:
    """The device of each block and, last, of the output layer. `shares` are -ts or the free bytes, by device."""
    total = blocks + 1
    start = max(total - gpu_layers, 0)
    active = min(gpu_layers, total) if devices else 0
    running = 0.0
    cumulative = []
    for share in shares:
        running = _f32(running + _f32(share))
        cumulative.append(running)
    if active and running <= 0:
        raise UsageError(
            "--tensor-split: the shares add up to nothing", hint="give each card a positive share"
        )
    points = [_f32(value / running) for value in cumulative] if running else []
    placed = []
    for block in range(total):
        if block < start or block - start >= active:
            placed.append(HOST)
            continue
        where = _f32(_f32(block - start) / active)
        index = next((i for i, point in enumerate(points) if where < point), len(points) - 1)
        placed.append(devices[index])
    return tuple(placed)


def place(table: ModelTable, settings: Settings, free_bytes: Sequence[int]) -> Placement:
    """Places every tensor. `free_bytes` by GPU decides the split where no -ts is given, as in the engine."""
    key = (
        *(settings.gpu_layers, settings.split_mode, settings.main_gpu, settings.tensor_split),
        *(settings.devices, settings.overrides, settings.draft_layers, tuple(free_bytes)),
    )
    if key not in table.placements:
        table.placements[key] = _place(table, settings, free_bytes)
    return table.placements[key]


def _place(table: ModelTable, settings: Settings, free_bytes: Sequence[int]) -> Placement:
    devices = settings.used_devices(len(free_bytes))
    given = settings.tensor_split
    shares = [given[i] if i < len(given) else 0.0 for i in devices] if any(given) else []
    if not any(shares):
        shares = [float(free_bytes[i]) for i in devices]
        if devices and settings.gpu_layers and not any(shares):
            raise UsageError(
                "no card has free memory: llama.cpp cannot share layers out",
                hint="--no-gpu plans for the CPU alone",
            )
    *layers, output = split_layers(table.blocks, settings.gpu_layers, tuple(shares), tuple(devices))
    moves = _moves(table, settings.overrides)
    loose: dict[int, int] = {}
    per_device: list[int] = []
    for index in table.loose:
        name = table.spec.tensors[index].name
        if name.startswith(INPUT_TENSORS):
            loose[index] = HOST
        elif name.startswith(_PER_DEVICE_TENSORS):
            per_device.append(index)
            loose[index] = layers[0]
        elif _goes_with_first_layer(name, table.spec.architecture):
            loose[index] = layers[0]
        else:
            loose[index] = output
    embedding = table.by_name.get("token_embd.weight")
    tied = output if embedding is None else moves.loose.get(embedding, output)
    loose.update(moves.loose)
    loaded = table.blocks if settings.draft_layers else table.layers
    copies = [(i, device) for i in per_device for device in sorted(set(layers[:loaded]) - {loose[i]})]
    apart = table.spec.architecture in _OUTPUT_FIRST
    copied = not table.has_output and table.spec.architecture not in _NO_HEAD_COPY
    if copied and embedding is not None and (apart or tied != loose[embedding]):
        copies.append((embedding, tied))  # the output projection is a second copy of the token table
    return Placement(
        table=table,
        layer_device=tuple(layers),
        output_device=output,
        moves=moves,
        loose=loose,
        copies=tuple(copies),
        draft_layers=settings.draft_layers,
        overridden=bool(settings.overrides),
    )


def _goes_with_first_layer(name: str, architecture: str) -> bool:
    """LFM2 calls the norm before its output `token_embd_norm`: that one lies with the output."""
    of_output = architecture in ("lfm2", "lfm2moe") and name.startswith("token_embd_norm.")
    return name.startswith(_FIRST_LAYER_TENSORS) and not of_output


def _moves(table: ModelTable, overrides: tuple[Override, ...]) -> Moves:
    if overrides not in table.moves:
        table.moves[overrides] = Moves.of(table, overrides)
    return table.moves[overrides]


@dataclass(frozen=True, slots=True)
class Repacked:
    """What the CPU's own formats add to the weights on the host, what lies in them, and the weights that do."""

    added_bytes: int = 0
    inside_bytes: int = 0
    names: frozenset[str] = frozenset()
    isa: frozenset[str] = frozenset()


NOT_REPACKED = Repacked()


def repack(table: ModelTable, placement: Placement, isa: frozenset[str]) -> Repacked:
    """The weights on the host that are kept in a format of a CPU with these instruction sets.

    Tables that are looked up by row stay as they are; a head that is tied to one has then a copy of its own, which is
    named as the head would be.
    """
    formats, stored = table.repacked(isa), table.stored_bytes(CPU_KIND)
    added = inside = 0
    names = set()
    for index, device in enumerate(placement.device_of):
        size = formats[index]
        if size is not None and device == HOST:
            added += size - stored[index]
            inside += size
            names.add(table.spec.tensors[index].name)
    embedding = table.by_name.get("token_embd.weight")
    copied = not table.has_output and table.spec.architecture not in _NO_HEAD_COPY
    if copied and embedding is not None:
        copy = dict(placement.copies).get(embedding)
        (size,) = repacked_bytes(table.spec.tensors[embedding : embedding + 1], isa)
        if size is not None and (placement.loose[embedding] if copy is None else copy) == HOST:
            added += size - (0 if copy is None else stored[embedding])
            inside += size
            names.add("output.weight")
    return Repacked(added, inside, frozenset(names), isa)


def weight_bytes(table: ModelTable, placement: Placement, kinds: Mapping[int, BackendKind]) -> dict[int, int]:
    """Bytes of weights by device (HOST included)."""
    known = placement.weight_bytes
    key = tuple(kinds.items())
    if key not in known:
        known[key] = _weight_bytes(table, placement, kinds)
    return dict(known[key])


def _weight_bytes(
    table: ModelTable, placement: Placement, kinds: Mapping[int, BackendKind]
) -> dict[int, int]:
    total = dict.fromkeys((*kinds, HOST), 0)
    kind = {device: kinds.get(device, CPU_KIND) for device in total}
    draft, moves = placement.draft_layers, placement.moves
    for first, end, home in placement.spans:
        sums = table.block_sums(kind[home], draft_layers=draft)
        total[home] += sums[end] - sums[first]
        for device in moves.devices:
            if device != home:
                out, into = (
                    moves.sums(table, device, kind[home], draft),
                    moves.sums(table, device, kind[device], draft),
                )
                total[home] -= out[end] - out[first]
                total[device] += into[end] - into[first]
    for index, device in (*placement.loose.items(), *placement.copies):
        total[device] += table.stored_bytes(kind[device])[index]
    return total
