"""What is known of one start of an engine: the lines that rules know, and facts. Readers and probes make the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1024**2
RUNNING = "the running server"
MACHINE = "this machine"  # the source of what is in no log
Value = int | float | str | bool
_FIRST = 4  # of many equal lines, how many are kept beside the last


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, or what a probe said. `number` is 0 for what has no line."""

    number: int
    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A line that a pattern matches, with what stood in its holes."""

    line: Line
    values: Mapping[str, str]


@dataclass(slots=True)
class Hits:
    """All lines of one pattern: the first few, the last one, and how many there were."""

    first: list[Hit] = field(default_factory=list)
    last: Hit | None = None
    count: int = 0

    def add(self, hit: Hit) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < _FIRST:
            self.first.append(hit)
        self.last = hit

    @property
    def all(self) -> list[Hit]:
        """Those that were kept, in order."""
        rest = [] if self.last is None or self.last in self.first else [self.last]
        return [*self.first, *rest]


@dataclass(frozen=True, slots=True)
class Fact:
    """A value and the line that says so (None where it follows from others)."""

    value: Value
    line: Line | None = None


@dataclass(slots=True)
class Device:
    """A GPU as the log shows it; sizes in bytes, None where no line says them."""

    name: str  # CUDA0, Vulkan1, RPC0[…], Metal
    description: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    integrated: bool = False
    line: Line | None = None


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer that the log shows. `kind` is model, context or compute; `context` counts the contexts made so far.
    `endpoint` is of a device behind an RPC server, where the number in its name is the server's.
    """

    device: str
    kind: str
    size_bytes: int
    line: Line
    context: int = 0
    endpoint: str = ""


@dataclass(slots=True)
class Start:
    """One start of an engine. `served` and `ended` are lines, None where that never came."""

    number: int
    first_line: int = 1
    source: str = ""
    facts: dict[str, Fact] = field(default_factory=dict)
    hits: dict[str, Hits] = field(default_factory=dict)  # by template
    devices: dict[str, Device] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    contexts: int = 0
    begun: Line | None = None  # the load has begun
    served: Line | None = None
    up: Line | None = None  # the latest that says that a load is done: an excerpt may show two
    ended: Line | None = None
    errors: list[Line] = field(default_factory=list)  # lines that say error, whether a rule knows them or not

    def set(self, name: str, value: Value, line: Line | None = None) -> None:
        """A fact; the latest line wins."""
        self.facts[name] = Fact(value, line)

    def get(self, name: str) -> Value | None:
        """A fact's value."""
        fact = self.facts.get(name)
        return None if fact is None else fact.value

    def number_of(self, name: str) -> float | None:
        """A fact's value where it is a number."""
        value = self.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def bytes_of(self, kind: str, *, host: bool) -> int:
        """All buffers of a kind, on the host or on devices."""
        return sum(
            item.size_bytes for item in self.buffers if item.kind == kind and is_host(item.device) is host
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was gathered. `observed` are facts of the machine, from probes; empty with a log alone."""

    starts: tuple[Start, ...]
    lines: int = 0
    dropped_starts: int = 0
    tail: tuple[Line, ...] = ()
    observed: Mapping[str, Fact] = field(default_factory=dict)


def is_host(device: str) -> bool:
    """Whether a buffer's device is system memory."""
    return device.startswith(("CPU", "Host", "AMX", "BLAS")) or device.endswith(("_Host", "_host"))
