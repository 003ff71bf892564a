"""What is text and what is none, in several scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan_llama.doctor.spoken import fault

# Short ones here; answers of the length that is asked for, in the forms that models give them, are in the file.
WRITTEN = (Path(__file__).parents[2] / "data" / "spoken" / "good.txt").read_text(encoding="utf-8")
GOOD = [
    *WRITTEN.split("=== \n")[1:],
    "Flour, water, yeast and salt are mixed and kneaded into a dough. It rests until it has doubled. Then it is baked.",
    "Mehl, Wasser, Hefe und Salz werden gemischt und geknetet; der Teig geht, bis er größer ist – dann bäckt man ihn.",
    "面粉、水、酵母和盐混合揉成面团。面团发酵至两倍大。然后放入烤箱烘烤。",
    "Муку, воду, дрожжи и соль смешивают и месят. Тесто поднимается. Затем его пекут.",
    "1. Mix.\n2. Knead.\n3. Bake at 220 °C. 🍞",
    "42",
    "Bread, bread and bread again: that is what a baker bakes.",
    "- knead\n- knead\n- wait",
    "É já: a avó Ângela põe pão à mesa.",
    "Paris",
    "**Paris**",
    "<think>\nThe user asks for the capital. One word.\n</think>\n\nParis.",
]


@pytest.mark.parametrize("text", GOOD)
def test_text_is_text(text: str) -> None:
    assert fault(text) == ""


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("...", "empty"),
        ("G" * 60, "repetition"),
        ("#" * 200, "repetition"),
        ("." * 80, "repetition"),
        ("Bread is baked. " + "I am sorry, I am sorry, " * 12, "repetition"),
        ("w24688 " * 30, "repetition"),
        ("好的" * 40, "repetition"),
        (
            "".join(
                f"{n}. Then the dough is kneaded and it rises again for an hour.\n" for n in range(1, 12)
            ),
            "repetition",
        ),
        ("Bread \ufffd\ufffd is \ufffd baked", "mojibake"),
        ("GrÃ¶ÃŸe und fÃ¼r die HÃ¤user".replace("ÃŸ", "Ã\u0178"), "mojibake"),
        ("\x00\x01 bread \x02", "mojibake"),
        ("\ue000\ue001\ue002 bread", "mojibake"),
    ],
)
def test_what_is_none(text: str, what: str) -> None:
    assert fault(text) == what
