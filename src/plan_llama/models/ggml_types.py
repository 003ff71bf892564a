"""The tensor types and the file types of llama.cpp b11434.

Sources: `enum ggml_type` in ggml/include/ggml.h, the block structures in ggml/src/ggml-common.h with
`type_traits` in ggml/src/ggml.c, and `enum llama_ftype` in include/llama.h.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from plan_llama import catalog
from plan_llama.models.types import TensorType

# id, ggml's name, elements of a block, bytes of a block
_TABLE = (
    (0, "f32", 1, 4),
    (1, "f16", 1, 2),
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (8, "q8_0", 32, 34),
    (9, "q8_1", 32, 36),
    (10, "q2_K", 256, 84),
    (11, "q3_K", 256, 110),
    (12, "q4_K", 256, 144),
    (13, "q5_K", 256, 176),
    (14, "q6_K", 256, 210),
    (15, "q8_K", 256, 292),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (30, "bf16", 1, 2),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36),
    (41, "q1_0", 128, 18),
    (42, "q2_0", 64, 18),
)

BY_ID: dict[int, TensorType] = {row[0]: TensorType(*row) for row in _TABLE}
BY_NAME: dict[str, TensorType] = {kind.name.lower(): kind for kind in BY_ID.values()}

# Ids that ggml gave up; no current program reads them.
REMOVED: dict[int, str] = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}

# general.file_type, by the names that llama-quantize takes.
FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}

_GUESSED = 1024  # LLAMA_FTYPE_GUESSED: the loader's own guess, kept as a flag beside the type

# Quant names as publishers put them into file names: llama-quantize's, ik_llama.cpp's (IQ3_KS, IQ4_KSS,
# IQ2_KL, IQ1_KT), dynamic mixes (UD-Q4_K_XL) and small ones (smol-IQ4_K).
_QUANT = re.compile(
    r"""(?<![A-Za-z0-9])
    (?:(?:UD|smol|i1)-)?
    (?: IQ[1-6]_(?:XXS|XS|NL|S|M|L|XL|KSS|KS|KT|KL|K)(?:_R[48])?
      | Q[2-8]_K(?:_(?:XXS|XS|S|M|L|XL|XXL|R[48]))?
      | Q[1-8]_[01](?:_R[48])?
      | TQ[12]_0 | MXFP4(?:_MOE)? | NVFP4 | BF16 | F16 | F32 )
    (?![A-Za-z0-9_])""",
    re.IGNORECASE | re.VERBOSE,
)


@cache
def others() -> Mapping[int, TensorType]:
    """The types that only ik_llama.cpp reads, by their ids (profiles/engines/ik_llama.cpp/types.toml)."""
    types, _ = _ik_llama()
    return types


def of_id(number: int) -> TensorType | None:
    """The type of that id, llama.cpp's or ik_llama.cpp's."""
    return BY_ID.get(number) or (others().get(number) if number > max(BY_ID) else None)


@cache
def _ik_llama() -> tuple[Mapping[int, TensorType], Mapping[int, str]]:
    path = catalog.root() / "engines" / "ik_llama.cpp" / "types.toml"
    table = catalog.Table(catalog.load(path), str(path))
    engine = table.take("engine", str)
    types = {}
    for row in table.tables("type"):
        kind = TensorType(
            row.take("id", int),
            row.take("name", str),
            row.take("elements", int),
            row.take("bytes", int),
            row.take("row_bytes", int),
            engine,
        )
        if kind.id > max(BY_ID):
            types[kind.id] = kind
    names = table.table("file_types")
    return MappingProxyType(types), {int(key): names.take(key, str) for key in names.keys()}  # noqa: SIM118


def by_name(name: str) -> TensorType:
    """A type by ggml's name in any case (`Q4_K`, `iq2_xs`). Raises KeyError for a name that b11434 lacks."""
    return BY_NAME[name.lower()]


def file_type_name(file_type: int) -> str | None:
    """`IQ2_M` for the general.file_type 29; None for a number that neither b11434 nor ik_llama.cpp knows."""
    number = file_type & ~_GUESSED
    return FILE_TYPES.get(number) or (_ik_llama()[1].get(number) if number > max(FILE_TYPES) else None)


def quant_in_name(file_name: str) -> str | None:
    """The quant that a file name states, in publishers' spelling (`UD-IQ2_M`); the last of several."""
    found = _QUANT.findall(file_name)
    return spell_quant(found[-1]) if found else None


def spell_quant(quant: str) -> str:
    """A quant name in publishers' spelling: upper case but for `smol-` and `i1-`."""
    prefix, dash, rest = quant.rpartition("-")
    return (prefix.upper() if prefix.lower() == "ud" else prefix.lower()) + dash + rest.upper()
