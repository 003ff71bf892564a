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

Beside these, doctor says `cause-not-found` (a start ended and no known line tells why), `log-ends-early` (the log stops
while the model loads), `not-ready-in-time` (a watched command had not come up when the time was over),
`output-garbage` (a probe of the output found no text, and no rule says why), `output-slow` and `output-no-answer` (its
answer did not come whole in its time, or not at all) and `prediction-differs` (what was measured and what is predicted
are more than 5 % apart).
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
    cause, fix = (" ".join(text.split()) for text in (rule.cause, rule.fix))
    sources = ", ".join(f"<{url}>" for url in rule.sources)
    return (
        f"### {rule.id}\n\n{rule.title}. *{rule.severity}*; {', '.join(rule.engines)}\n\n"
        f"- Why: {cause}\n- Do: {fix}\n- Source: {sources}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
