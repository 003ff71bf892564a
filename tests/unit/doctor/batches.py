"""Batches of published logs, labelled before doctor read them: what it answers, and whether that is right.

`python -m tests.unit.doctor.batches a` prints the wrong ones of a batch and the score.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from plan_llama.doctor import report
from plan_llama.doctor.judge import diagnose
from plan_llama.doctor.rules import load
from tests.unit.doctor.logs import LOGS, Sample, read, samples

NO_CAUSE = (
    "",
    "cause-not-found",
    "log-ends-early",
    "engine-crashed",
    "ollama-server-terminated",
    "vllm-engine-core-failed",
)


def batch(name: str) -> list[Sample]:
    """The logs of a batch."""
    return list(samples(LOGS / "batches" / f"{name}.txt"))


def answer(sample: Sample) -> str:
    """The first finding that is no note, empty where there is none. The line with the link is not read."""
    _, _, log = sample.text.partition("\n")
    evidence = read(log)
    found = report.findings(evidence, diagnose(evidence, load()))
    return next((item.id for item in found if item.severity != "note"), "")


def right(sample: Sample, said: str) -> bool:
    """Whether an answer is what the label says, or one of its two."""
    if sample.label == "healthy":
        return not said
    return said in NO_CAUSE if sample.label == "cannot-tell" else said in sample.label.split("|")


def main(names: Sequence[str]) -> None:
    """Print what was wrong."""
    for name in names:
        said = [(sample, answer(sample)) for sample in batch(name)]
        for sample, text in said:
            if not right(sample, text):
                sys.stdout.write(f"{sample.name}: {sample.label}, said {text or 'nothing'}\n")
        for kind in ("healthy", "cannot-tell", ""):
            mine = [
                (s, t)
                for s, t in said
                if (s.label == kind if kind else s.label not in ("healthy", "cannot-tell"))
            ]
            sys.stdout.write(
                f"{name} {kind or 'with a cause'}: {sum(right(s, t) for s, t in mine)} of {len(mine)}\n"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
