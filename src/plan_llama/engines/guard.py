"""What was started ends, even where this program is killed and ends nothing itself (SIGKILL, or for want of memory).

A small process of its own reads a pipe that nobody else holds: the process group that it is to end, then nothing until
the pipe closes with this program. The kernel's own way (PR_SET_PDEATHSIG of prctl) is Linux's only, reaches one process
and none that this one starts, and fires with the thread that started it. On Windows nothing stands in for this.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

_GUARD = """
import os, signal, sys, time
group = sys.stdin.buffer.readline()
sys.stdin.buffer.read()
for wanted in (signal.SIGTERM, signal.SIGKILL):
    if group:
        os.killpg(int(group), wanted)
        time.sleep(0.5)
"""


class Guard:
    """Ends the group that it is told of when this process ends without `release`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if hasattr(os, "killpg") and sys.executable:
            with contextlib.suppress(OSError):  # without it what is started is as safe as it was before
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARD],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )

    def watch(self, group: int) -> None:
        """From now on."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(f"{group}\n".encode())

    def release(self) -> None:
        """The group is ended, or nothing was started."""
        if self._process is not None and self._process.stdin is not None:
            self._process.kill()  # before the pipe closes: the number may be another group's by now
            self._process.wait()
            self._process.stdin.close()
