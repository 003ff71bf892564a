"""Record how systemd itself splits and expands the words of ExecStart= and Environment= lines.

Asks extract_first_word() and replace_env_argv() of libsystemd-shared, the functions that the manager uses
(src/basic/extract-word.c, src/basic/env-util.c), and writes tests/data/launchers/systemd_words.json. Signatures and
flags are those of systemd 252.

    python3 scripts/record_systemd_words.py /usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "tests/data/launchers/systemd_words.json"
CUNESCAPE, UNQUOTE = 1 << 1, 1 << 5
Strings = ctypes.POINTER(ctypes.c_char_p)

LINES = [
    "",
    "  one \t two  ",
    r"""a 'b c'd "e\"f" g\x41\n '' ""x""",
    """ONE='one' "TWO='two two' too" THREE=""",
    r"a\q",
    r"a\ b",
    '"open',
    "'it\\'s' x\"y z\"w",
    r'"\u00e9\101\\" \s\t\U0001F600',
    r"\u12",
    r"\x4",
    r"\x00",
    "ünï  cødé",
    r"""/usr/bin/llama-server -m "/models/a \"b\" 'c' \\ %%h $$x.gguf" -c 4096""",
    r"""'single "double" \x20 \' end' "double 'single' \" end" """,
    "a;b ; c",
    "trailing\\",
]
ENV = ["ONE=one", "TWO='two two' too", "EMPTY=", "A_1=x  y"]
ARGVS = [
    ["p", "$ONE", "$TWO", "${TWO}", "$EMPTY", "${EMPTY}", "$A_1", "x${A_1}y"],
    ["p", "$$ONE", "a$$b", "$$", "a$", "$", "$1", "${1}", "$ONE x", "$ONE-x", "x$ONE"],
    ["p", "$$$$", "${ONE}${TWO}", "{$ONE}", "${ONE", "$$${ONE}"],
]


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    extract, expand = library.extract_first_word, library.replace_env_argv
    extract.argtypes = [Strings, Strings, ctypes.c_char_p, ctypes.c_int]
    expand.restype, expand.argtypes = Strings, [Strings, Strings]

    def words(text: str) -> list[str] | None:
        buffer = ctypes.create_string_buffer(text.encode())
        place = ctypes.c_char_p(ctypes.addressof(buffer))
        found: list[str] = []
        while True:
            word = ctypes.c_char_p()
            code = extract(ctypes.byref(place), ctypes.byref(word), None, CUNESCAPE | UNQUOTE)
            if code <= 0:
                return found if code == 0 else None
            found.append((word.value or b"").decode())

    def array(items: list[str]) -> object:
        return ctypes.cast((ctypes.c_char_p * (len(items) + 1))(*[i.encode() for i in items], None), Strings)

    def expanded(argv: list[str]) -> list[str]:
        made = expand(array(argv), array(ENV))
        found = []
        while (item := made[len(found)]) is not None:
            found.append(item.decode())
        return found

    answer = {
        "library": Path(sys.argv[1]).name,
        "words": [{"text": text, "words": words(text)} for text in LINES],
        "environment": ENV,
        "expanded": [{"argv": argv, "words": expanded(argv)} for argv in ARGVS],
    }
    TARGET.write_text(json.dumps(answer, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
