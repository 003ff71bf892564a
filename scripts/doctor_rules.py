"""Write docs/reference/doctor-rules.md from profiles/failures: `python scripts/doctor_rules.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from plan_llama.doctor.rules import Rule, load

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "doctor-rules.md"
HEAD = """# What doctor knows

Made from `profiles/failures` by `scripts/doctor_rules.py`. How each is seen stands there.
*fatal*: nothing serves; *degraded*: it serves, wrongly; *slow*: below what the machine can do; *note*: information.
A rule of one's own is a TOML file in the folder `failures` of the user's profiles.
*general*: the cause only where no line names one more exactly. The end of "Why" tells a failure from those that look
like it.

## Which of several errors is the cause

1. What ended the start, or turned the request down, comes before what made it slow; what was only warned of, retried
   with success or survived (the server came up afterwards) is no cause. Of several starts, one that a later start
   does better without its error counts less.
2. The first error, not what follows from it: a wrapper's line, an exit code, a second traceback, a client that lost
   its connection, a list of what may be the reason.
3. What a line names outside of the engine (the driver, a right, a missing library, memory of the machine, a kill, a
   full disk, a file, the network) comes before the engine's complaint about it.
4. A failure that names the thing comes before one that names its kind; *general* ones are last. Among them the order
   is: an error of the GPU's library, a failed check of the engine, a refused model, context or batch, a refused
   option, a Python exception, a crash, and then what only says that a process ended (`vllm-engine-core-failed`,
   `ollama-server-terminated`).
5. Words count, not guesses. Where two would do and no line tells which, it is the general one; where no line tells
   anything but that it failed, it is `cause-not-found`.

## What is no rule

Beside the failures below, doctor says `cause-not-found` (a start ended and no known line tells why), `log-ends-early`
(the log stops while the model loads), `not-ready-in-time` (a watched command had not come up when the time was over),
`output-garbage` (a probe of the output found no text, and no rule says why), `output-slow` and `output-no-answer`
(its answer did not come whole in its time, or not at all) and `prediction-differs` (what was measured and what is
predicted are more than 5 % apart).
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    section = ""
    for rule in load():
        if rule.section != section:
            section = rule.section
            lines.append(f"## {section}\n")
        lines.append(_rule(rule))
    return "\n".join(lines)


def _rule(rule: Rule) -> str:
    cause, fix = (" ".join(text.split()) for text in (f"{rule.cause} {rule.apart}", rule.fix))
    general = ", *general*" if rule.last_resort else ""
    sources = ", ".join(f"<{url}>" for url in rule.sources)
    return (
        f"### {rule.id}\n\n{rule.title}. *{rule.severity}*{general}; {', '.join(rule.engines)}\n\n"
        f"- Why: {cause}\n- Do: {fix}\n- Source: {sources}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
