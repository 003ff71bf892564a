"""The PowerShell launcher under the tree-sitter grammar of PowerShell: no package registry has PowerShell itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tree_sitter_powershell
from hypothesis import given
from tree_sitter import Language, Node, Parser

from plan_llama.launchers import powershell
from tests.unit.launchers.test_formats import QUICK, SIGNS, WORDS, recipe

PARSER = Parser(Language(tree_sitter_powershell.language()))


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes(child)


def errors(text: str) -> list[str]:
    """What the grammar has no rule for, or misses."""
    tree = PARSER.parse(text.encode())
    return [
        f"{n.type} at {n.start_point}: {n.text!r}"
        for n in nodes(tree.root_node)
        if n.is_error or n.is_missing
    ]


def strings(text: str) -> list[str]:
    """The literal strings of the array of arguments, as the grammar ends them."""
    tree = PARSER.parse(text.encode())
    (assigned,) = [
        node
        for node in nodes(tree.root_node)
        if node.type == "assignment_expression" and (node.text or b"").startswith(b"$arguments = @(")
    ]
    return [(n.text or b"").decode() for n in nodes(assigned) if n.type == "verbatim_string_characters"]


@QUICK
@given(WORDS)
def test_no_word_breaks_the_script(more: list[str]) -> None:
    made = recipe("--alias", *more, env={"A": "".join(more)})
    text = powershell.script(made)
    assert errors(text) == []
    assert strings(text) == [powershell.quote(word) for word in made.command.argv[1:]]


@pytest.mark.parametrize("word", [*SIGNS.split(" "), "-–—", "--%", "a`b", "$(x) 'y' \"z\"", "a\nb", ""])
def test_signs_with_a_meaning_are_quoted(word: str) -> None:
    made = recipe("--alias", word, model=f"/srv/{word}x.gguf", env={"A": word})
    assert errors(powershell.script(made)) == []


def test_the_grammar_notices_what_is_not_quoted() -> None:
    text = powershell.script(recipe("--alias", "it's"))
    assert errors(text) == []
    assert errors(text.replace("'it''s'", "'it's'"))
