"""Whether llama-bench ranks settings and quants on this CPU as plan-llama's predictions do.

    python -m tests.engine.ranking BIN OUT.jsonl [ROUNDS]

makes models of real shapes (speed_models.py), calibrates this machine, asks plan-llama for its plan and for what
llama-bench would measure, measures everything in turns, and writes one line per measurement; the lines of this
project's machine are in tests/data/cpu. The test of the same name does so with fewer runs.

Other programs that run meanwhile spoil a run of several threads, which wait for each other at every operation. Where it
is allowed, llama-bench therefore runs before all others (SCHED_FIFO).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

from plan_llama.cli.app import run as command_line
from tests.engine import processes, speed_models
from tests.oracle_cases import BUILD

APART = 1.2  # predictions that differ by more have to be in the right order
ROUNDS = 5
MOST_ROUNDS = 11
_PAUSE = 0.4  # of the time that a run of the long version took: others want to work, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A process of llama-bench: `flags` beside those of the plan's own choice, of which they win."""

    model: str
    mix: str
    flags: tuple[str, ...] = ()
    prompt: int = 128
    output: int = 16
    depth: int = 0

    def __str__(self) -> str:
        deep = f" after {self.depth} tokens" if self.depth else ""
        return " ".join((self.model, self.mix, *self.flags)) + deep


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Tokens per second of a run: predicted (low, expected, high) and measured, one number per round."""

    run: Run
    kind: str  # prefill or decode
    predicted: tuple[float, float, float]
    measured: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.measured)

    @property
    def task(self) -> tuple[str, str, int, int]:
        """What was to be done: only settings and quants for the same are a choice."""
        run = self.run
        return run.model, self.kind, run.output if self.kind == "decode" else run.prompt, run.depth

    @property
    def in_range(self) -> bool:
        return self.predicted[0] <= self.median <= self.predicted[2]

    def __str__(self) -> str:
        low, expected, high = self.predicted
        return (
            f"{self.kind} {self.median:.1f} tok/s ({min(self.measured):.1f} to {max(self.measured):.1f}), "
            f"predicted {expected:.1f} ({low:.1f} to {high:.1f}): {self.run}"
        )


def plan_llama(*words: str | Path) -> Any:
    """The JSON that plan-llama prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command_line([str(word) for word in words])
    assert code == 0, (words, code, out.getvalue()[:500])
    return json.loads(out.getvalue())


def calibrate(folder: Path) -> Any:
    """What `plan-llama calibrate` says of this machine; PLAN_LLAMA_CACHE of the environment keeps it."""
    words = [sys.executable, "-m", "plan_llama", "calibrate", "--json", "--path", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, preexec_fn=_before_others)
    return json.loads(done.stdout)


class Bench:
    """Predicts and measures runs with one engine; files of models are kept in `folder`."""

    def __init__(self, bin_folder: Path, folder: Path) -> None:
        self.bin, self.folder = bin_folder, folder
        self._choices: dict[Path, list[str]] = {}

    def file(self, run: Run) -> Path:
        return speed_models.model_file(run.model, run.mix, self.folder)

    def words(self, run: Run) -> list[str]:
        """The arguments of llama-bench: those that plan-llama prints with its plan of the file, then the run's own."""
        path = self.file(run)
        if path not in self._choices:
            plan = plan_llama("--model", path, "--json", "--engine-path", self.bin / "llama-server")
            assert plan["verdict"] == "fits", (run, plan["verdict"])
            bench = next(c["argv"] for c in plan["programs"] if Path(c["argv"][0]).name == "llama-bench")
            self._choices[path] = bench[1:]
        words = list(self._choices[path])
        own = [*run.flags, "-p", str(run.prompt), "-n", str(run.output), "-d", str(run.depth)]
        for flag in own[::2]:
            while flag in words:  # llama-bench would measure both values
                place = words.index(flag)
                del words[place : place + 2]
        return [*words, *own]

    def predicted(self, run: Run) -> dict[str, tuple[float, float, float]]:
        """What `plan-llama check` says of the command, at the depth at which llama-bench measures."""
        found = {}
        if run.output:
            speed = self._speed(run, max(1, run.depth), run.output, 0.0)
            found["decode"] = _range(speed["decode_tok_s"])
        if run.prompt:
            whole = run.depth + run.prompt
            speed = self._speed(run, whole, 1, run.depth / whole)
            low, expected, high = _range(speed["prefill_tok_s"])
            if run.depth:  # the new part of a prompt whose rest is cached
                own = run.prompt / (speed["follow_up_ttft_s"] - 1 / speed["decode_tok_s"]["expected"])
                low, expected, high = low * own / expected, own, high * own / expected
            found["prefill"] = (low, expected, high)
        return found

    def _speed(self, run: Run, prompt: int, output: int, reuse: float) -> Any:
        wishes = ["--prompt-tokens", str(prompt), "--output-tokens", str(output), "--reuse", str(reuse)]
        words = ["llama-bench", *self.words(run)]
        engine = self.bin / "llama-server"
        return plan_llama("check", "--json", "--engine-path", engine, *wishes, "--", *words)["speed"]

    def measure(self, run: Run) -> dict[str, float]:
        """Tokens per second of one process."""
        words = [str(self.bin / "llama-bench"), *self.words(run), "-r", "1", "--no-warmup", "-o", "json"]
        done = subprocess.run(
            words,
            env=processes.engine_env(self.bin),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            preexec_fn=_before_others,
        )
        assert done.returncode == 0, (words, done.stderr[-2000:])
        return {("decode" if row["n_gen"] else "prefill"): row["avg_ts"] for row in json.loads(done.stdout)}


def _range(rate: dict[str, float]) -> tuple[float, float, float]:
    return rate["low"], rate["expected"], rate["high"]


def _before_others() -> None:
    """Runs in the child: ask for the processor before all ordinary programs, where that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))


def results(bench: Bench, runs: Sequence[Run], rounds: int = ROUNDS, *, pause: float = 0.0) -> list[Result]:
    """Every run once per round, one after the other, so that a slow minute slows all of them."""
    said = {run: bench.predicted(run) for run in runs}
    found = [
        Result(run=run, kind=kind, predicted=predicted, measured=())
        for run in runs
        for kind, predicted in said[run].items()
    ]
    for _ in range(rounds):
        found = another_round(bench, found, pause=pause)
    return found


def another_round(bench: Bench, found: Sequence[Result], *, pause: float = 0.0) -> list[Result]:
    """The results with one more measurement of each."""
    rates: dict[Run, dict[str, float]] = {}
    for run in dict.fromkeys(result.run for result in found):
        began = time.monotonic()
        rates[run] = bench.measure(run)
        time.sleep(pause * (time.monotonic() - began))
    return [replace(r, measured=(*r.measured, rates[r.run][r.kind])) for r in found]


def compared(found: Sequence[Result]) -> Iterator[tuple[Result, Result]]:
    """The pairs of one task that have to be in order, what is predicted faster first."""
    for fast, slow in permutations(found, 2):
        if fast.task == slow.task and fast.predicted[1] > APART * slow.predicted[1]:
            yield fast, slow


def out_of_order(found: Sequence[Result]) -> list[tuple[Result, Result]]:
    """The pairs whose medians say the opposite of what was predicted."""
    return [(fast, slow) for fast, slow in compared(found) if fast.median <= slow.median]


def decided(bench: Bench, found: list[Result], until: float) -> list[Result]:
    """The results, with more rounds of what is out of order until it is not, or the rounds or the time are up."""
    while wrong := out_of_order(found):
        again = {(r.run, r.kind) for pair in wrong for r in pair}
        doubtful = [r for r in found if (r.run, r.kind) in again]
        if len(doubtful[0].measured) >= MOST_ROUNDS or time.monotonic() > until:
            break
        fresh = {(r.run, r.kind): r for r in another_round(bench, doubtful)}
        found = [fresh.get((r.run, r.kind), r) for r in found]
    return found


_QWEN_MIXES = (
    "F16 BF16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 IQ4_NL IQ4_XS Q3_K_M Q2_K IQ3_XXS IQ2_XXS".split()  # noqa: SIM905
)
_QUANTISED = ("-ctk", "q8_0", "-ctv", "q8_0")
LONG = (
    *(Run(model="qwen3-0.6b", mix=mix) for mix in _QWEN_MIXES),
    *(Run(model="qwen3-0.6b", mix=mix, flags=("-t", "1"), prompt=64) for mix in ("Q8_0", "Q4_K_M")),
    *(Run(model="qwen3-0.6b", mix=mix, flags=("--repack", "0")) for mix in ("Q4_0", "Q4_K_M")),
    *(Run(model="qwen3-0.6b", mix="Q4_K_M", flags=("-ub", n), prompt=512, output=0) for n in ("128", "512")),
    *(
        Run(model="qwen3-0.6b", mix="Q4_K_M", flags=flags, prompt=64, depth=1024)
        for flags in ((), ("-fa", "off"), _QUANTISED)
    ),
    *(Run(model="llama-3.2-1b", mix=mix) for mix in ("Q8_0", "Q4_K_M", "IQ2_XXS")),
    *(Run(model="gemma-3-1b", mix=mix) for mix in ("Q4_0", "Q4_K_M")),
    Run(model="gemma-3-1b", mix="Q4_0", flags=("--repack", "0")),
    *(Run(model="granite-3.1-1b-a400m", mix=mix) for mix in ("Q8_0", "Q4_K_M", "Q4_0", "IQ3_XXS")),
    *(
        Run(model=model, mix="Q4_K_M", flags=("-ub", "512", "-fa", flash), prompt=512, depth=depth)
        for model in ("qwen3-0.6b-4L", "llama-3.2-1b-4L")
        for flash in ("on", "off")
        for depth in (0, 4096, 8192, 16384)
    ),
    *(
        Run(model="qwen3-0.6b-4L", mix="Q4_K_M", flags=("-fa", "on", "-t", "1"), prompt=0, depth=depth)
        for depth in (2048, 4096)
    ),
)


def main(arguments: Sequence[str]) -> int:
    """The long version, model after model; exit code 1 where a pair is out of order."""
    bin_folder, out = Path(arguments[0]), Path(arguments[1])
    rounds = int(arguments[2]) if len(arguments) > 2 else ROUNDS
    folder = Path.home() / ".cache" / "plan-llama" / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(bin_folder, folder)
    machine = calibrate(folder)
    wrong = 0
    with out.open("w", encoding="utf-8") as file:
        head = {"date": datetime.now(UTC).date().isoformat(), "build": BUILD}
        file.write(json.dumps(head | {key: machine[key] for key in ("machine", "memory")}) + "\n")
        for model in dict.fromkeys(run.model for run in LONG):
            runs = [run for run in LONG if run.model == model]
            kept = set(folder.glob("*.gguf"))
            found = results(bench, runs, rounds, pause=_PAUSE)
            for made in set(folder.glob("*.gguf")) - kept:
                made.unlink()
            for result in found:
                file.write(json.dumps(_row(bench, result)) + "\n")
                sys.stdout.write(f"{result}\n")
            pairs = out_of_order(found)
            wrong += len(pairs)
            for fast, slow in pairs:
                sys.stdout.write(f"OUT OF ORDER\n  {fast}\n  {slow}\n")
            sys.stdout.write(f"{model}: {len(list(compared(found)))} pairs, {len(pairs)} out of order\n")
            sys.stdout.flush()
    return 1 if wrong else 0


def _row(bench: Bench, result: Result) -> dict[str, Any]:
    run = result.run
    decode = result.kind == "decode"
    return {
        "model": run.model,
        "mix": run.mix,
        "flags": " ".join(bench.words(run)[2:]),
        "kind": result.kind,
        "tokens": run.output if decode else run.prompt,
        "depth": run.depth,
        "tok_s": round(result.median, 3),
        "runs": [round(rate, 3) for rate in result.measured],
        "predicted": [round(rate, 2) for rate in result.predicted],
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
