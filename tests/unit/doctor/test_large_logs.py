"""A log of any size in one pass: processor time and memory, and that nothing rare is lost in it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from plan_llama.doctor import kept, reader
from plan_llama.doctor.reader import LogReader
from tests.unit.doctor.large import write
from tests.unit.doctor.logs import book, found

GB = 1_000_000_000
MOST_S, MOST_BYTES = 30.0, 200 * 1024**2  # for a GB: half of the minute that it may take by the clock
# As the program itself, then: what the process took. ru_maxrss would count what its starter held too, VmHWM does not.
PROGRAM = """
import resource, sys
from plan_llama.__main__ import main
sys.argv[0] = "plan-llama"
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    print(used.ru_utime + used.ru_stime, int(peak.split()[1]) * 1024, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_large_log_takes_little_time_and_memory(tmp_path: Path) -> None:
    size = GB // 20
    write(tmp_path / "log", size)
    argv = [sys.executable, "-c", PROGRAM, "doctor", "--log", str(tmp_path / "log"), "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    seconds, memory = map(float, ended.stderr.split())
    answer = json.loads(ended.stdout)
    assert answer["findings"][0]["id"] == "host-alloc-failed"
    assert answer["log"]["lines"] > 300_000
    assert seconds < MOST_S * size / GB + 2.0  # two for the start with all rules, and the judging
    assert memory < MOST_BYTES


def test_lines_of_a_server_that_restarts_without_end_take_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long lines, each of another shape, that have the words of a rule; a start every hundred of them.

    The bounds are a tenth of the real ones, and so is the log.
    """
    monkeypatch.setattr(kept, "_MOST_BYTES", kept._MOST_BYTES // 10)
    monkeypatch.setattr(reader, "_MOST_BYTES", reader._MOST_BYTES // 10)

    def parts() -> Iterator[bytes]:
        begin = b"srv  llama_server: initializing ...\nsrv load_model: loading model 'a.gguf'\n"
        for number in range(1_500):
            word = bytes(97 + int(digit) for digit in str(number))
            line = b"cudaMalloc failed: out of memory error %s %s\n" % (word, word * (4000 // len(word)))
            yield begin + line if number % 125 == 0 else line

    log = LogReader(book())
    tracemalloc.start()
    for part in parts():
        log.read(io.BytesIO(part), "log")
    evidence = log.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert evidence.lines == 1_524
    assert len(evidence.starts) + evidence.dropped_starts == 12
    assert evidence.dropped_starts > 0
    assert peak < 15_000_000


def test_a_rare_line_among_many_of_its_shape_is_found() -> None:
    """`truncated = 1` in one of ten thousand requests: its digits are all that tells it from the others."""
    line = "slot      release: id  3 | task {n} | stop processing: n_tokens = 147, truncated = {cut}\n"
    many = [line.format(n=number, cut=int(number == 5000)) for number in range(10_000)]
    items = found("".join(many))
    assert [item.rule.id for item in items] == ["output-context-lost"]
    assert items[0].evidence[0].number == 5001
    assert items[0].count == 1


def test_how_often_is_counted_over_the_whole_log() -> None:
    line = "srv operator(): forcing full prompt re-processing due to lack of cache data (see {n})\n"
    items = found("".join(line.format(n=number) for number in range(20_000)))
    assert (items[0].rule.id, items[0].count) == ("swa-full-reprocess", 20_000)
