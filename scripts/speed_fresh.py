"""The section of docs/reference/speed.md about published runs that are in no fit (fresh.jsonl)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from scripts import speed_report
from scripts.speed_cases import DATA, Case, Cases, read

from plan_llama.speed.constants import Constants

FILE = "fresh.jsonl"
HEADING = "## On runs that are in no fit"
WORST = 10
OF_A_PAGE = 2  # of the worst, that one page may give
_VENDORS = {"nvidia": "NVIDIA", "amd": "Radeon", "intel": "Arc", "apple": "Apple"}
_KINDS = (
    *(f"{what}, {vendor}" for what in ("dense", "experts") for vendor in ("NVIDIA", "Radeon", "Arc")),
    *(
        f"{what}, {memory}"
        for what in ("experts on the host", "CPU only")
        for memory in ("1 or 2 channels", "more")
    ),
    *(f"unified memory, {vendor}" for vendor in ("Apple", "Radeon", "NVIDIA")),
)


def fresh(data: Path = DATA) -> Cases:
    """The fresh rows as cases. None of them is in any fit."""
    return read(data, FILE)


def pages(data: Path = DATA) -> dict[str, str]:
    """The source page of every fresh row."""
    rows = map(json.loads, (data / FILE).read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["source_url"] for row in rows}


def kind(case: Case) -> str:
    """What tells a case's machine from others of its class: the maker of its GPU, or the channels of its memory."""
    name = speed_report.size_class(case)
    if name in ("offload", "cpu"):
        memory = "1 or 2 channels" if (case.machine.ram.channels or 2) <= 2 else "more"
        return f"{'experts on the host' if name == 'offload' else 'CPU only'}, {memory}"
    what = {"gpu": "dense", "gpu_moe": "experts", "unified": "unified memory"}[name]
    return f"{what}, {_VENDORS[case.machine.gpus[0].vendor]}"


def ratios(case: Case, constants: Constants) -> tuple[float | None, float | None]:
    """Predicted over measured: decode, and prompts."""
    decode, prefill = speed_report.predict(case, constants)
    return (
        decode / case.decode_tok_s if case.decode_tok_s else None,
        prefill / case.prefill_tok_s if case.prefill_tok_s else None,
    )


def worst(cases: Iterable[Case], constants: Constants, index: int) -> list[tuple[Case, float]]:
    """The cases furthest off with their ratio, of decode (index 0) or of prompts (1), OF_A_PAGE of one page."""
    source, seen = pages(), dict[str, int]()
    found = [
        (case, ratio) for case in cases for ratio in [ratios(case, constants)[index]] if ratio is not None
    ]
    picked: list[tuple[Case, float]] = []
    for case, ratio in sorted(found, key=lambda item: -abs(math.log(item[1]))):
        page = source[case.id].split("/blob/")[0]
        seen[page] = seen.get(page, 0) + 1
        if seen[page] <= OF_A_PAGE and len(picked) < WORST:
            picked.append((case, ratio))
    return picked


def section(constants: Constants) -> str:
    """The section, with its heading."""
    cases = fresh().cases
    return "\n".join(
        [
            HEADING,
            "",
            f"{len(cases)} runs of 2025 and 2026 from {len(set(pages().values()))} pages",
            "(`tests/data/throughput/fresh.jsonl`), picked by a rule that was written down before (its README),",
            "recorded before any was predicted, and in no fit. The ranges are those of the shipped constants. Before",
            "the model learnt from them (Arc and GB10 have shares of their own since, set by hand, and two channels of",
            "memory have one that is fitted to other runs), decode was off by 14.7 % and prompts by 20.8 % in the",
            "median, 80 and 76 % in range.",
            "",
            speed_report.table(cases, constants),
            "By maker of the GPU and by channels of memory: the median of predicted ÷ measured, so that below 1 runs",
            "are faster than said, and the lowest and highest.",
            "",
            *_by_kind(cases, constants),
            "",
            _READING,
            f"The {WORST} decode speeds and the {WORST} prompt speeds furthest off, at most {OF_A_PAGE} of a page:",
            "",
            "| run | | predicted | measured | why, as far as it can be read |",
            "|---|---|---|---|---|",
            *(
                _worst_row(case, constants, index)
                for index in (0, 1)
                for case, _ in worst(cases, constants, index)
            ),
            "",
        ]
    )


def replaced(page: str, text: str) -> str:
    """A page with the section in place of the one that it has."""
    before, found, after = page.partition(f"{HEADING}\n")
    if not found:
        raise ValueError(f"the page has no heading '{HEADING}'")
    end = after.index("\n## ") + 1
    return f"{before}{text}{chr(10)}{after[end:]}"


def _by_kind(cases: Sequence[Case], constants: Constants) -> list[str]:
    rows: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in _KINDS}
    for case in cases:
        for values, ratio in zip(rows[kind(case)], ratios(case, constants), strict=True):
            values += [ratio] if ratio is not None else []
    lines = [
        "| runs | decode: n | predicted ÷ measured | prefill: n | predicted ÷ measured |",
        "|---|---|---|---|---|",
    ]
    for name, both in rows.items():
        cells = [cell for values in both for cell in (str(len(values)), _spread(values))]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


def _worst_row(case: Case, constants: Constants, index: int) -> str:
    predicted = speed_report.predict(case, constants)[index]
    measured = (case.decode_tok_s, case.prefill_tok_s)[index] or 0.0
    why = _WHY.get(case.id, ("", ""))[index]
    return f"| {case.id} | {('decode', 'prompt')[index]} | {predicted:.1f} | {measured:.1f} | {why} |"


# Milliseconds and ratios in the texts below come from the constants that first predicted these runs.
_READING = """\
What errs together, and what the model lacks there (milliseconds beside a prediction are of the constants of
26 November 2026, with which these runs were first predicted):

- **Intel Arc** took the constants of NVIDIA's desktop cards, and now has some by hand. What decides are the
  kernels of the backend, which no constant tells apart: one Arc Pro B70 read a prompt of Qwen3.6 35B-A3B with
  615 tokens per second under SYCL (April 2026), another with 1,708 under Vulkan (September); and Llama 3.1 8B
  with 1,069 or 2,452 by whether SYCL sums in F16.
- **Desktop memory** is read better than one share for desktops and servers says: a Ryzen 9 7900 with
  DDR5-5600 read the experts of three models at 57 to 59 of its 90 GB/s, what the cards and hand-overs take
  aside, and six performance cores with DDR5-4000 and 4800 at two thirds of theirs and more. Servers do not
  show it. Two channels have a share of their own since, fitted to other runs, which is still below these.
- **Copying experts to the card** has no one speed: that desktop copied 57 to 62 GB of three models at 14 to
  15 GB/s, a Quadro RTX 5000 in a virtual machine at 9, from a mapped file each. And gpt-oss 120B was read
  as if at 24 GB/s on that desktop, and a third faster than GLM-4.5-Air on an i9-14900K: the tokens of a
  benchmark's prompt choose fewer of its experts than chance would.
- **Many threads wait for each other:** an EPYC 9B14 with 44 threads took 5 ms more a token than predicted
  for the 36 layers of gpt-oss 120B and 7 ms for the 48 of Qwen3 30B-A3B, 128 threads of an EPYC 9965 6 ms
  for the 61 of Kimi K2: 0.1 to 0.15 ms a layer that is charged nowhere.
- **Recurrent layers** (Qwen3-Next, Qwen3.5, Nemotron) depend on the build. At the end of 2025 each took 0.5
  ms more than predicted on a GPU, with ROCm as with Vulkan; from spring 2026 on mostly less than 0.1 ms. On
  cores it was 2 ms on two laptop chips (HX 370 in `calibration.jsonl`, Max+ 395 here) and less on others,
  far above what their bytes take.
- **M1 and M2** read 16-bit weights at nearly the memory's speed, but quantised ones at some 4 to 7 GB/s per
  core of the GPU (24 cores of an M1 Max 143 GB/s, 30 of an M2 Max 130, 76 of an M2 Ultra 375 to 514):
  unpacking binds. M3 and later do not show it, nor does one run of an M1 Max in `calibration.jsonl` (306
  GB/s). A chip's name leaves the number of cores open.
- **Prompts of dense models** are read faster by builds of 2025 and 2026 than by those of 2024, of which
  most constants are: by a fifth to a quarter on NVIDIA's cards, by a half to two thirds with ik_llama.cpp
  on an RTX 4080 and a 3090 Ti. MXFP4 is multiplied as it is on Blackwell since December 2025, which a GB10
  shows.
"""

_SYCL = "SYCL's kernels for experts; the same card is far faster under Vulkan"
_SYCL_DENSE = "SYCL without sums in F16"
_M1 = "unpacking on 24 GPU cores binds, or the Mac was busy: its own numbers scatter"
_M2 = "unpacking IQ3_KS on 30 GPU cores binds, not the memory"
_DDR5 = "two channels are read better than their share says"
_VULKAN = "Arc's constants are those of SYCL"
_5975 = "both pages of this machine fit some 60 GB/s: perhaps not all eight channels are filled"
_COPY = "copies experts faster than a mapped file's usual 9 GB/s, or not all of them: tokens share experts"
_RECURRENT = "kernels of Qwen3-Next before they were fused: 0.5 ms a recurrent layer"
_WHY: dict[str, tuple[str, str]] = {
    "jiml-z13-cpu-qwen35-35b": ("recurrent layers on cores, 2 ms each; a tablet's power besides", ""),
    "eloq-9b14-qwen3-30b": ("44 threads wait for each other in each of 48 layers", ""),
    "eloq-9b14-qwen3-30b-d6k": (
        "attention on cores: 1 ms a layer for 6,000 cells, where gpt-oss pays 0.4; cause not known",
        "",
    ),
    "kinetic-b70-nemotron9b": ("SYCL: 1.1 ms more for each recurrent layer", _SYCL_DENSE),
    "kinetic-b70-llama70b-q2k": ("SYCL: Q2_K is not read as fast as Q4_K on this card", _SYCL_DENSE),
    "kinetic-b70-llama8b": ("", _SYCL_DENSE),
    "kinetic-b70-qwen3-8b": ("", _SYCL_DENSE),
    "kinetic-b70-gptoss20": ("SYCL has no fast kernel for MXFP4", "SYCL has no fast kernel for MXFP4"),
    "kinetic-b70-qwen3-30b": (_SYCL, _SYCL),
    "pmzfx-2b70-qwen36-35b-q8": (_SYCL, _SYCL),
    "pmzfx-2b70-codernext": (_SYCL, _SYCL),
    "pmzfx-b70-qwen35-35b": (_SYCL, _SYCL),
    "pmzfx-b70-qwen36-35b": (_SYCL, _SYCL),
    "pmzfx-b70-gemma4-26b": (_SYCL, _SYCL),
    "clint-b70-qwen3-30b": ("", _VULKAN),
    "clint-b70-qwen36-35b": ("", _VULKAN),
    "clint-b70-qwen38-27b": ("", _VULKAN),
    "kyuz0r9700-2x-qwen3next": (_RECURRENT, _RECURRENT),
    "kyuz0r9700-coder30b-q4-d32k": ("", "attention of this build makes no use of RDNA4's matrix units"),
    "ferrum-m1max24-qwen3-8b": (_M1, ""),
    "ferrum-m1max24-llama8b": (_M1, ""),
    "ferrum-m1max24-qwen3-30b": (_M1, ""),
    "ik566-m2max-llama8b": (_M2, ""),
    "ik566-m2max-llama8b-d3584": (_M2, ""),
    "clint-rtx5000-4800-qwen3-30b-n40": (_DDR5, ""),
    "clint-rtx5000-4800-qwen3-30b-n16": (_DDR5, ""),
    "clint-rtx5000-qwen3-30b-n40": (_DDR5, ""),
    "clint-rtx5000-qwen3-30b-n16": (_DDR5, ""),
    "loft51-pro6000-9175f-glm51": (
        "IQ3_KS is counted as slow on cores as Q3_K; 16 large cores read it faster",
        "",
    ),
    "ik518-7950x-llama8b-lcpp": (
        "table types are unpacked faster by this processor",
        "llama.cpp unpacked IQ3_S anew for every token (tiles came in September 2026)",
    ),
    "ik566-5975wx-llama8b": (_5975, ""),
    "ik566-5975wx-llama8b-d3584": (_5975, ""),
    "ik829-4080-5975wx-gptoss120": (_5975, _COPY),
    "ik829-4080-5975wx-gptoss120-d28k": (_5975, _COPY),
    "reynardo-2x3060-gptoss120": ("", "gpt-oss: fewer experts are touched and copied than chance says"),
    "geer21-strix-llama3b-rocm": ("", "an early ROCm for this chip"),
    "geer21-strix-gptoss20": ("", "two days after the model's release"),
    "ik370-3090ti-qwen3-30b": (
        "",
        "before the engine's fused experts (rows of August 2025 are as predicted)",
    ),
    "lc17505-4090-llama8b-d32k": (
        "attention of this build reads the cache at nearly the card's bandwidth",
        "",
    ),
    "kyuz0r9700-gemma3-4b-q3": ("Q3_K and a small model: launches, and a type that is slow on this card", ""),
}
