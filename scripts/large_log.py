"""How long doctor takes for a large log, and with how much memory.

    PYTHONPATH=src python scripts/large_log.py [SIZE_IN_GB]

Writes a log of that size (1 GB) into a folder that is deleted again: requests and starts as llama-server b11434 writes
them, other numbers each time, and a fifth of noise. Linux, with `resource`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.unit.doctor.large import write  # noqa: E402

GB = 1_000_000_000


def main() -> None:
    """Writes, reads, and says what it took."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 1) * GB)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.log"
        write(path, size)
        began = time.monotonic()
        argv = [sys.executable, "-m", "plan_llama", "doctor", "--log", str(path)]
        ended = subprocess.run(argv, capture_output=True, text=True, check=False)
        clock = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime
        sys.stdout.write(ended.stdout.partition("\n\n")[0] or ended.stderr)
        sys.stdout.write(
            f"\n{path.stat().st_size / GB:.2f} GB: {seconds:.1f} s of processor time, {clock:.1f} s by the clock, "
            f"{used.ru_maxrss / 1024:.0f} MiB at most; exit code {ended.returncode}\n"
        )


if __name__ == "__main__":
    main()
