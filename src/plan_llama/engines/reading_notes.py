"""Findings about a command's arguments: refused, without effect, odd, or beyond what settings hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from plan_llama.engines.commandline import ParsedArgument, ParsedCommand
from plan_llama.findings import Finding

# Arguments that take memory or change the loaded model, and that a plan's settings do not hold.
_UNCOUNTED = {
    "-md": "the draft model's weights, cache and buffers are not counted",
    "-hfd": "the draft model's weights, cache and buffers are not counted",
    "--lora": "the adapter's weights are not counted",
    "--lora-scaled": "the adapter's weights are not counted",
    "--control-vector": "the control vector is not counted",
    "--control-vector-scaled": "the control vector is not counted",
    "--override-kv": "a changed header value is not taken into account",
    "--rpc": "remote devices are not part of the described machine",
    "--no-host": "host weights go to other buffers than the ones described",
    "-lzm": "reading tensors on demand is not taken into account",
    "--embedding": "an output row per token of the batch is not counted",
    "--rerank": "an output row per token of the batch is not counted",
    "-gan": "group attention is not taken into account",
}


def argument_findings(parsed: ParsedCommand) -> Iterator[Finding]:
    """One finding for each argument that is refused, has no effect, is given twice or is read oddly."""
    for item in parsed.arguments:
        given = item.spelling if "=" in item.spelling or " " in item.spelling else item.words
        fix = item.fix
        if item.status in ("unknown", "bad-value", "removed"):
            yield Finding(id=_refusal_id(item), severity="error", text=f"{given}: {item.reason}", fix=fix)
        elif item.status == "ignored":
            where = "environment variable " if item.from_env else ""
            yield Finding(
                id="flag-deprecated",
                severity="note",
                text=f"{where}{given}: {item.reason}",
                fix="leave it out",
            )
        elif item.status == "duplicate":
            yield Finding(
                id="flag-deprecated",
                severity="note",
                text=f"{given}: given more than once; {item.reason}",
                fix="give it once",
            )
        elif item.reason:
            yield Finding(id="flag-odd-value", severity="warning", text=f"{given}: {item.reason}", fix=fix)
        if item.from_env and item.argument and _given_on_line(parsed, item):
            yield Finding(
                id="env-overrides-flag",
                severity="note",
                text=f"{item.spelling} is set, but {item.argument.name} on the command line replaces it",
                fix="unset the variable",
            )


def uncounted(
    last: Mapping[str, ParsedArgument], serves: bool, counted: str | None = None
) -> Iterator[Finding]:
    """A warning for each argument whose memory or effect the settings do not describe; they do describe `counted`."""
    for name, text in _UNCOUNTED.items():
        if name in last and name != counted and (item := last[name]):
            yield Finding(id="not-counted", severity="warning", text=f"{item.words}: {text}")
    for name, item in last.items():
        if serves and item.spelling == name and name.endswith(("-default", "-spec")):
            yield Finding(
                id="not-counted",
                severity="warning",
                text=f"{name} sets a model, a context and batches of its own: these are not counted",
                fix="write the arguments out",
            )


def _refusal_id(item: ParsedArgument) -> str:
    if item.status == "removed":
        return "flag-removed"
    if item.status == "unknown":
        return "flag-unknown-old-build"
    if item.argument and "--flash-attn" in item.argument.names:
        return "flash-attn-needs-value"
    return "flag-bad-value"


def _given_on_line(parsed: ParsedCommand, item: ParsedArgument) -> bool:
    return any(other.argument is item.argument and not other.from_env for other in parsed.arguments)
