"""Programs that do not end by themselves: ended once they have said enough, for their time, or for their memory."""

from __future__ import annotations

import os
import sys

from plan_llama.engines.bounded import Ended, Watch, run
from plan_llama.units import MIB

ENV = dict(os.environ)


def watched(code: str, *, timeout_s: float = 30, most_bytes: int = 1 << 40) -> Ended:
    """A Python that runs `code`, until it says "enough"."""
    said = bytearray()

    def enough(fresh: bytes) -> bool:
        said.extend(fresh)
        return b"enough" in said

    watch = Watch(enough=enough, most_bytes=most_bytes)
    return run([sys.executable, "-u", "-c", code], env=ENV, timeout_s=timeout_s, watch=watch)


def test_it_is_ended_once_it_has_said_enough() -> None:
    ended = watched("import sys, time\nprint('not yet')\nprint('enough', file=sys.stderr)\ntime.sleep(60)")
    assert (ended.answered, ended.code, ended.timed_out) == (True, None, False)
    assert ended.out.split() == ["not", "yet", "enough"]
    assert ended.seconds < 30


def test_all_that_is_said_is_seen() -> None:
    """More lines than are kept, in one go."""
    ended = watched("import time\nprint('line\\n' * 300000 + 'enough')\ntime.sleep(60)")
    assert ended.answered
    assert ended.out.endswith("enough\n")


def test_it_is_ended_before_it_eats_the_machine() -> None:
    ended = watched("import time\nall = b'x' * (200 << 20)\ntime.sleep(60)", most_bytes=100 * MIB)
    assert (ended.answered, ended.code, ended.timed_out) == (False, None, False)
    assert "it may take 100 MiB" in ended.how
    assert ended.seconds < 30


def test_one_that_ends_by_itself_or_hangs() -> None:
    assert watched("exit(3)").code == 3
    hanging = watched("import time\ntime.sleep(60)", timeout_s=0.5)
    assert (hanging.answered, hanging.timed_out) == (False, True)
