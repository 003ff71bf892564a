"""The quants of a model that are looked at for one answer, each read once."""

from __future__ import annotations

from plan_llama.cli import images
from plan_llama.cli.options import ModelOptions
from plan_llama.errors import ModelError
from plan_llama.memory.table import ModelTable
from plan_llama.models.resolve import Choice


class Tables:
    """What was read, by where it is from: a table remembers what was worked out of its graphs, for every context."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._read: dict[tuple[str, str], ModelTable | ModelError] = {}

    def of(self, choice: Choice) -> ModelTable:
        """The table of a quant. Raises ModelError for a file that cannot be read."""
        key = choice.repo, choice.quant
        if key not in self._read:
            try:
                self._read[key] = ModelTable(images.with_projector(choice.load(), self._options))
            except ModelError as error:
                self._read[key] = error
        found = self._read[key]
        if isinstance(found, ModelError):
            raise found
        return found
