"""Ask the real engine what it takes for projectors: tests/engine/tools/mmprojbytes.cpp on headers of real shapes.

usage: python -m tests.engine.measure_projectors    (writes tests/data/projectors/cases.jsonl again, in two minutes)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from plan_llama.models.images import Image, limits
from plan_llama.models.writer import write_header
from tests.engine import processes
from tests.projector_cases import RECORDED, Case, to_json, tower

# one model of each tower, and of those that differ in the width of the text model
_EVERY_TYPE = ("gemma-3-27b", "glm-4.5v", "qwen2.5-vl-7b", "qwen3-vl-8b")
_OTHERS = (
    *("gemma-3-4b", "gemma-3-12b", "gemma-4-26b-a4b", "gemma-4-31b", "glm-4.1v-9b-thinking", "kimi-vl-a3b"),
    *("llama-4-scout", "mistral-small-3.2-24b", "qwen2.5-vl-72b", "qwen3-vl-30b-a3b", "qwen3-vl-32b"),
    *("qwen3.5-122b-a10b", "qwen3.5-397b-a17b", "qwen3.6-27b", "qwen3.6-35b-a3b"),
    *("InternVL3-8B", "Kimi-K2.5", "MiniMax-M3"),
)
# small enough for plain attention: its scores grow with the square of the patches
_WITHOUT_FLASH_ATTENTION = ("gemma-3-4b", "kimi-vl-a3b", "llama-4-scout", "mistral-small-3.2-24b")
_CAPPED = (("qwen2.5-vl-7b", 1280), ("glm-4.5v", 256), ("gemma-4-31b", 280), ("mistral-small-3.2-24b", 100))


def cases() -> Iterator[Case]:
    """What is measured, without answers."""
    for model, outputs in (
        *((name, ("F16", "BF16", "Q8_0")) for name in _EVERY_TYPE),
        *((name, ("F16",)) for name in _OTHERS),
    ):
        for output in outputs:
            for gpu in (False, True):
                yield _case(model, output, gpu=gpu)
    for model in _WITHOUT_FLASH_ATTENTION:
        for gpu in (False, True):
            yield _case(model, "F16", gpu=gpu, flash_attn=False)
    for model, most in _CAPPED:
        yield _case(model, "F16", gpu=True, max_tokens=most)


def _case(
    model: str, output: str, *, gpu: bool, flash_attn: bool = True, max_tokens: int | None = None
) -> Case:
    found = limits(tower(model, output).hparams, max_tokens=max_tokens)
    assert found is not None
    images = [found.largest]
    if found.dynamic:
        images.append(Image(found.largest.width, found.warmup.height // 2))
    if model.startswith("gemma-4"):
        images.append(Image(720, 720, 4))
    whole = tower(model, output).int_param("vision.patch_size") * found.merge
    images = [Image(i.width // whole * whole, max(whole, i.height // whole * whole), i.count) for i in images]
    return Case(
        model=model,
        output=output,
        gpu=gpu,
        flash_attn=flash_attn,
        max_tokens=max_tokens,
        images=tuple(dict.fromkeys(images)),
        answer={},
    )


def ask(bin_folder: Path, case: Case, folder: Path, env: Mapping[str, str], rpc: list[str]) -> dict[str, Any]:
    """What the engine takes for a case. The projector's header is written into `folder`."""
    path = folder / f"mmproj-{case.model}-{case.output}.gguf"
    if not path.exists():
        write_header(tower(case.model, case.output), path)
    argv: list[str | Path] = [bin_folder / "mmprojbytes", path, "--fa", "on" if case.flash_attn else "off"]
    argv += ["--gpu", *rpc] if case.gpu else []
    argv += ["--max-tokens", str(case.max_tokens)] if case.max_tokens else []
    for image in case.images:
        argv += ["--size", f"{image.width}x{image.height}*{image.count}"]
    done = processes.finished(argv, env=env)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    """Measures every case."""
    bin_folder = Path(os.environ["PLAN_LLAMA_ENGINE_BIN"])
    env = processes.engine_env(bin_folder)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port, log = processes.free_port(), folder / "rpc.log"
        server: list[str | Path] = [bin_folder / "ggml-rpc-server", "-H", processes.LOOPBACK, "-p", str(port)]
        card = stack.enter_context(processes.running(server, env=env, log=log))
        processes.wait_until(lambda: processes.listens(port), card, log, what="ggml-rpc-server", timeout_s=20)
        env |= {"SIM_GPU_MIB": "81920", "SIM_GPU_USED_MIB": "0"}
        lines = []
        for case in cases():
            sys.stderr.write(f"{case.id}\n")
            answer = ask(bin_folder, case, folder, env, ["--rpc", f"{processes.LOOPBACK}:{port}"])
            lines.append(json.dumps(to_json(replace(case, answer=answer)), separators=(",", ":")))
        RECORDED.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
