"""Measure llama.cpp on a CUDA card: what `tests/data/cuda` holds. Needs a CUDA build of b11434 with `membytes` in BIN.

usage: python -m tests.engine.measure_cuda models DIR NAME[:LAYERS]...
       python -m tests.engine.measure_cuda memory BIN OUT.jsonl
       python -m tests.engine.measure_cuda speed  BIN DIR OUT.jsonl
       python -m tests.engine.measure_cuda experts BIN DIR OUT.jsonl
       python -m tests.engine.measure_cuda batched BIN DIR OUT.jsonl
       python -m tests.engine.measure_cuda server BIN MODEL.gguf OUT.jsonl [plan options]...

`models` makes files of real size with random but valid weights of stored headers (numpy); what a block adds to its
input is zero, so that each token keeps its own embedding and chooses its own experts. `memory` asks the recorded
commands of `tests/data/conformance/real.jsonl` again, several equal cards as shares of the first one. `speed` runs
llama-bench, `experts` too (experts on the card by micro-batch, of models in DIR), `batched` llama-batched-bench
(several streams). `server` runs the command that plan-llama prints, sends three requests of random tokens and notes the
memory in use on the card (nvidia-ml-py). Nothing is sent anywhere but to that server on this machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plan_llama.models.writer import write_header
from tests.conformance_cases import measured, spec
from tests.engine.random_weights import fill
from tests.engine.record_memory import header
from tests.small_models import cut

_SHORT = "16,32,64,128,256"
_RUNS: tuple[tuple[str, str, str], ...] = (  # model, placement, what is measured
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99", "-p 2048 -n 64 -d 0,16384"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48", "-b 4096 -ub 512,2048,4096 -p 4096 -n 0 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48", "-p 0 -n 32 -t 16,8 -d 0,8192"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 24", "-ub 2048 -p 2048 -n 32 -t 16"),
    ("glm-5.1-ud-iq2-8L", "-ngl 99", "-p 2048 -n 32 -d 0,16384,65536"),
    ("glm-5.1-ud-iq2-8L", "-ngl 99 -ncmoe 99", "-ub 512,2048 -p 2048 -n 24 -t 16"),
    ("llama-3.1-8b-q4_k_m", "-ngl 99", "-p 2048 -n 64 -ub 512,2048 -d 0,16384"),
    ("llama-3.1-8b-q4_k_m", "-ngl 16", "-p 512 -n 24 -t 16"),
    ("llama-3.1-8b-q4_k_m", "-ngl 0", "-p 512 -n 16 -t 16"),
    # from here on with tokens that choose their own experts
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48", "-b 4096 -ub 512,2048,4096 -p 4096 -n 0 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48", "-p 0 -n 32 -t 16,8,4"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48", "-p 8,16,24,32,48,64,96,128,256,512 -nopo 0,1 -n 0 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48", "-ub 512,1024,2048 -p 1024 -n 0 -t 16"),
    ("gpt-oss-20b-mxfp4", "-ngl 99 -ncmoe 24", "-ub 512,2048 -p 2048 -n 32 -t 16"),
    ("gpt-oss-20b-mxfp4", "-ngl 99 -ncmoe 24", f"-p {_SHORT} -nopo 0,1 -n 0 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -fa off", "-p 2048 -n 32 -d 0,16384"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99", "-p 2048 -n 32 -d 0,16384"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ctk q8_0 -ctv q8_0", "-p 2048 -n 32 -d 16384"),
    ("mistral-small-4-119b-2603-q4_k_m-6L", "-ngl 99", "-ub 512,2048 -p 2048 -n 16 -t 16"),
    (
        "mistral-small-4-119b-2603-q4_k_m-6L",
        "-ngl 99 -ot ffn_down_exps=CPU",
        "-ub 512,2048 -p 2048 -n 16 -t 16",
    ),
    ("mistral-small-4-119b-2603-q4_k_m-6L", "-ngl 99 -ncmoe 99", "-ub 512,2048 -p 2048 -n 16 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 24", "-ub 2048 -p 2048 -n 32 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48 -lm mmap", "-ub 2048 -p 512,2048 -n 0 -t 16"),
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99 -ncmoe 48 -lm mmap", "-ub 512 -p 64,256 -nopo 0,1 -n 0 -t 16"),
    ("glm-5.1-ud-iq2-8L", "-ngl 99 -ncmoe 99", "-ub 512,2048 -p 2048 -n 24 -t 16"),
    ("glm-5.1-ud-iq2-8L", "-ngl 99 -ncmoe 99", f"-p {_SHORT} -nopo 0,1 -n 0 -t 16"),
    ("gpt-oss-20b-mxfp4", "-ngl 99", "-p 2048 -n 64 -d 0,16384"),
    ("gpt-oss-20b-mxfp4", "-ngl 99 -ncmoe 24", "-ub 512,2048 -p 2048 -n 32 -t 16"),
)

_BY_UBATCH = "-b 4096 -ub 64,128,256,512,1024,2048,4096 -p 4096 -n 64"
_WHOLE = "-ub 512,2048 -p 2048 -n 64"
_EXPERTS: tuple[tuple[str, str, str], ...] = (
    ("qwen3-30b-a3b-q4_k_m", "-ngl 99", _BY_UBATCH),
    ("gpt-oss-20b-mxfp4", "-ngl 99", _BY_UBATCH),
    ("glm-4.5-air-q4_k_m-8L", "-ngl 99", _BY_UBATCH),
    ("gpt-oss-120b-f16-8L", "-ngl 99", _BY_UBATCH),
    ("deepseek-v3.1-iq2_xxs-7L", "-ngl 99", _BY_UBATCH),
    ("ernie-4.5-21b-a3b-q4_k_m", "-ngl 99", _BY_UBATCH),
    ("qwen3-next-80b-a3b-q4_k_m-8L", "-ngl 99", _BY_UBATCH),
    ("deepseek-v3.1-iq2_xxs-7L", "-ngl 99 -ncmoe 99", "-ub 512,2048 -p 2048 -n 24 -t 16"),
    ("glm-4.5-air-q4_k_m-8L", "-ngl 99 -ncmoe 99", "-ub 512,2048 -p 2048 -n 24 -t 16"),
    ("mixtral-8x7b-q4_k_m-12L", "-ngl 99", _BY_UBATCH),
    ("qwen3-30b-a3b-q4_k_m-24L", "-ngl 99", _WHOLE),
    ("llama-3.1-8b-q4_k_m", "-ngl 99", _WHOLE),
    ("phi-4-q4_k_m", "-ngl 99", _WHOLE),
    ("hunyuan-7b-q8_0", "-ngl 99", _WHOLE),
    ("gemma-3-27b-q4_0", "-ngl 99", _WHOLE),
    ("llama-3.2-1b-q4_0", "-ngl 99", _WHOLE),
)

_MANY = "1,2,4,8,16,32,64"
_STREAMS = (  # model, placement, tokens that each stream writes, how many streams
    ("qwen3-30b-a3b-q4_k_m", "-fa on -ngl 99 -lm none", 64, _MANY),
    ("gpt-oss-20b-mxfp4", "-fa on -ngl 99 -ncmoe 24 -lm none", 32, _MANY),
    ("llama-3.1-8b-q4_k_m", "-fa on -ngl 99 -lm none", 64, _MANY),
    ("llama-3.1-8b-q4_k_m", "-fa on -ngl 16 -lm none", 32, "1,4,16"),
)


def make_models(folder: Path, names: Sequence[str]) -> None:
    """Files of real size; `NAME:8` has the first eight layers."""
    folder.mkdir(parents=True, exist_ok=True)
    for text in names:
        name, _, layers = text.partition(":")
        model = cut(spec("real", name), int(layers)) if layers else spec("real", name)
        path = folder / f"{name}{f'-{layers}L' if layers else ''}.gguf"
        write_header(model, path, force=True)
        fill(path, alone=True)


def memory(bin_folder: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    """Bytes by place of each recorded command with equal cards."""
    for case in measured("real"):
        cards = case.asked.cards
        if case.refused or not cards or len(set(cards)) > 1:
            continue
        env = {**os.environ, "GGML_CUDA_DEVICES": str(len(cards))}
        if case.asked.program == "llama-server":
            env["MEMBYTES_MODE"] = "server"
        path = header(spec("real", case.model), scratch)
        argv = [str(bin_folder / "membytes"), "-m", str(path), *case.asked.flags]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        if "error" in answer:
            continue
        places: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for buffer in answer["bufts"]:
            place = "Host" if buffer["is_host"] else "GPU" + buffer["dev"].removeprefix("CUDA")
            for index, part in enumerate(("model", "context", "compute")):
                places[place][index] += buffer[part]
        yield {
            "model": case.model,
            "program": case.asked.program,
            "cards": cards,
            "flags": " ".join(case.asked.flags),
            "bytes": places,
        }


def speed(bin_folder: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """llama-bench's rows."""
    yield from _bench(_RUNS, bin_folder, folder)


def experts(bin_folder: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """llama-bench's rows by micro-batch; a model that is not in the folder is left out."""
    yield from _bench([run for run in _EXPERTS if (folder / f"{run[0]}.gguf").exists()], bin_folder, folder)


def _bench(runs: Sequence[tuple[str, str, str]], bin_folder: Path, folder: Path) -> Iterator[dict[str, Any]]:
    for model, placement, asked in runs:
        flags = placement if "-fa " in placement else f"-fa on {placement}"
        flags = flags if "-lm " in flags else f"{flags} -lm none"
        argv = [
            str(bin_folder / "llama-bench"),
            "-o",
            "jsonl",
            "-r",
            "2",
            "-m",
            str(folder / f"{model}.gguf"),
        ]
        done = subprocess.run(
            [*argv, *flags.split(), *asked.split()], capture_output=True, text=True, check=True
        )
        for row in map(json.loads, done.stdout.splitlines()):
            yield {
                **_asked(model, flags, row),
                "prompt": row["n_prompt"],
                "output": row["n_gen"],
                "depth": row["n_depth"],
                "tok_s": round(row["avg_ts"], 2),
                "deviation": round(row["stddev_ts"], 2),
                "tokens_spread": True,
            }


def _asked(model: str, flags: str, row: dict[str, Any]) -> dict[str, Any]:
    """What both benches were asked, as they print it."""
    return {
        "model": model,
        "flags": flags,
        "ubatch": row["n_ubatch"],
        "batch": row["n_batch"],
        "threads": row["n_threads"],
    }


def batched(bin_folder: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """llama-batched-bench's rows: tokens per second of all streams together."""
    for model, flags, output, streams in _STREAMS:
        argv = [str(bin_folder / "llama-batched-bench"), "-m", str(folder / f"{model}.gguf"), *flags.split()]
        argv += ["-c", "16384", "-b", "2048", "-ub", "512", "-t", "16", "-fit", "off", "-npp", "128"]
        argv += ["-ntg", str(output), "-npl", streams, "--output-format", "jsonl"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        for row in (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")):
            yield {
                **_asked(model, flags, row),
                "prompt": row["pp"],
                "output": row["tg"],
                "streams": row["pl"],
                "prefill_tok_s": round(row["speed_pp"], 2),
                "decode_tok_s": round(row["speed_tg"], 2),
            }


def server(bin_folder: Path, model: Path, options: Sequence[str]) -> dict[str, Any]:
    """The printed command, run: the card's memory before, when loaded and at most, and three requests."""
    import pynvml

    program = str(bin_folder / "llama-server")
    asked = [sys.executable, "-m", "plan_llama", "--model", str(model), "--engine-path", program, "--json"]
    plan = json.loads(subprocess.run([*asked, *options], capture_output=True, text=True, check=True).stdout)
    argv = [program, *plan["command"]["argv"][1:]]
    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    most = before = pynvml.nvmlDeviceGetMemoryInfo(card).used
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, pynvml.nvmlDeviceGetMemoryInfo(card).used)

    threading.Thread(target=watch, daemon=True).start()
    with Path("server.log").open("wb") as log:
        running = subprocess.Popen([*argv, "-lv", "4"], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{argv[argv.index('--port') + 1]}"
    try:
        while not _answers(f"{address}/health"):
            if running.poll() is not None:
                sys.exit("llama-server ended; see server.log")
            time.sleep(0.1)
        loaded = most
        _ask(address, 64, 8)
        requests = [_ask(address, tokens, 64) for tokens in (2048, 8000, 8000)]
    finally:
        running.terminate()
        running.wait()
        ended.set()
    return {
        "model": model.stem,
        "argv": argv[1:],
        "used_before": before,
        "used_loaded": loaded,
        "used_peak": most,
        "requests": requests,
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  # this machine
            return bool(answer.status == 200)
    except OSError:
        return False


def _ask(address: str, tokens: int, output: int) -> dict[str, Any]:
    chosen = random.Random(tokens + output)  # noqa: S311
    prompt = [chosen.randrange(100, 20000) for _ in range(tokens)]
    body = {"prompt": prompt, "n_predict": output, "ignore_eos": True, "temperature": 0.0}
    request = urllib.request.Request(  # noqa: S310
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        found: dict[str, Any] = json.loads(answer.read())["timings"]
    return found


_BENCHES = {"speed": speed, "experts": experts, "batched": batched}


def main(words: Sequence[str]) -> int:
    """Exit code 0, 2 for a wrong call."""
    what, *rest = words or ("",)
    if what == "models" and len(rest) > 1:
        make_models(Path(rest[0]), rest[1:])
        return 0
    if what == "memory" and len(rest) == 2:
        rows = memory(Path(rest[0]), Path(rest[1]).parent)
    elif what in _BENCHES and len(rest) == 3:
        rows = _BENCHES[what](Path(rest[0]), Path(rest[1]))
    elif what == "server" and len(rest) > 2:
        rows = iter([server(Path(rest[0]), Path(rest[1]), rest[3:])])
    else:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    with Path(rest[1] if what == "memory" else rest[2]).open("a", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
