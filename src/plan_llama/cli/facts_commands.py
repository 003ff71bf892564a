"""The commands that show facts: hardware, models, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plan_llama.cli.options import HardwareOptions
from plan_llama.cli.screen import Screen
from plan_llama.errors import EXIT_OK, UsageError
from plan_llama.models.types import ModelSpec


def hardware(
    options: HardwareOptions,
    *,
    path: str | None,
    engine_path: str | None,
    measure: bool,
    save: Path | None,
    force: bool,
    json: bool,
) -> int:
    """Shows the machine; writes it as a description where asked."""
    from plan_llama.cli.hardware import as_json, render
    from plan_llama.cli.wishes import hardware_choice
    from plan_llama.hardware import described
    from plan_llama.hardware.overrides import resolve

    machine = resolve(
        hardware_choice(options), model_path=path, engine_path=engine_path, measure_bandwidth=measure
    )
    if save is not None:
        described.save(machine, save, force=force)
    if json:
        return _json({"schema": 1, **as_json(machine)})
    text = render(machine)
    if save is not None:
        text += f"\nwritten: {save}; plan for it with --hardware {save}\n"
    Screen().write(text)
    return EXIT_OK


def models(words: str, *, json: bool) -> int:
    """Lists the catalog, or the quants of a repository on the hub (`hf:OWNER/REPO`)."""
    from plan_llama.models.resolve import spelled

    words = spelled(words)
    if words.lower().startswith("hf:"):
        from plan_llama.cli import repository
        from plan_llama.models.remote import hub_repository

        found = hub_repository(words)
        if json:
            return _json({"schema": 1, "repository": repository.as_json(found)})
        Screen().write(repository.render(found))
        return EXIT_OK
    from plan_llama.cli.models import models_json, render_models, search

    listed = search(words)
    if json:
        return _json({"schema": 1, **models_json(listed)})
    Screen().write(render_models(listed, words))
    return EXIT_OK


def inspect(model: str, quant: str | None, *, write_header: Path | None, force: bool, json: bool) -> int:
    """Shows what a model's file holds; writes its header as a sparse file where asked."""
    from plan_llama.cli import repository
    from plan_llama.cli.models import as_json, render_inspect
    from plan_llama.models.resolve import projector_file, resolve_model

    if (projector := projector_file(model)) is not None:
        return _inspect_projector(projector, write_header=write_header, json=json)
    spec = resolve_model(model, quant)
    size = None
    if write_header is not None:
        from plan_llama.models.writer import write_header as write

        size = write(spec, write_header, force=force)
    found = repository.offered(model)
    if json:
        more = {"origin_note": spec.origin_note, "repository": repository.as_json(found) if found else None}
        return _json({"schema": 1, **as_json(spec), **more})
    text = render_inspect(spec)
    if spec.origin_note:
        text += f"\n  {spec.origin_note}\n"
    if found:
        text += f"\n{repository.render(found)}"
    if size is not None:
        text += f"\nwritten: {write_header}, a header over {size:,} bytes of hole\n"
    Screen().write(text)
    return EXIT_OK


def _inspect_projector(spec: ModelSpec, *, write_header: Path | None, json: bool) -> int:
    from plan_llama.cli import images

    if write_header is not None:
        raise UsageError(
            "--write-header: a projector has no header of a model", hint="name the model's own file"
        )
    if json:
        return _json({"schema": 1, "projector": images.inspect_json(spec)})
    Screen().write(images.render_inspect(spec))
    return EXIT_OK


def _json(answer: dict[str, Any]) -> int:
    from plan_llama.cli.screen import print_json

    print_json(answer)
    return EXIT_OK
