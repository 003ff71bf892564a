"""What has to be known about a model's file that is not, or not all, on this machine."""

from __future__ import annotations

from plan_llama.findings import Finding, Severity
from plan_llama.models.types import ModelSpec
from plan_llama.units import publisher_gb


def about_file(spec: ModelSpec) -> list[Finding]:
    """What is to be known about a file that is not (all) here."""
    found = []
    if spec.data_note:
        severity: Severity = "warning" if spec.download is None else "note"
        found.append(Finding(id="model-data", severity=severity, text=f"{spec.path}: {spec.data_note}"))
    if spec.origin_note:
        found.append(Finding(id="model-origin", severity="note", text=spec.origin_note))
    if spec.source == "catalog":
        found.append(
            Finding(
                id="model-from-catalog",
                severity="note",
                text=_not_here(spec),
            )
        )
    if unknown := names_unknown(spec):
        text, fix = unknown
        text += ": -m names their folder, which llama.cpp does not read"
        found.append(Finding(id="file-name-unknown", severity="warning", text=text, fix=fix))
    if spec.made_with:
        import shlex

        found.append(
            Finding(
                id="model-not-published",
                severity="warning",
                text=f"no published {spec.quant} is known here: planned as llama.cpp's own tools make it "
                f"({publisher_gb(spec.file_bytes)}; the tensors are exact, the header is estimated)",
                fix=shlex.join(spec.made_with),
            )
        )
    return found


def _not_here(spec: ModelSpec) -> str:
    """Of a catalog file: where its size and its tensors come from."""
    size = publisher_gb(spec.file_bytes)
    here = "the file is not on this machine: its"
    if spec.sources.get("file_bytes") != "modelled":
        return f"{here} tensors are modelled after what the publisher states ({size})"
    text = f"{here} size ({size}) and tensors are those of llama-quantize's {spec.quant}"
    if spec.download and spec.download.files and spec.sources.get("file_name") != "catalog":
        text += "; its name follows the repository's habit and was not looked up, which --model "
        text += f"hf:{spec.download.repo} does"
    return text


def names_unknown(spec: ModelSpec) -> tuple[str, str] | None:
    """What to say, and what to do, where the catalog knows a repository but not the names of its files."""
    if spec.files or spec.download is None or spec.download.files:
        return None
    repo = spec.download.repo
    return (
        f"the names of the files in {repo} are not known here",
        f"--model hf:{repo}:{spec.quant} looks them up, or plan again after the download",
    )
