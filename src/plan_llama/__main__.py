"""`plan-llama` and `python -m plan_llama`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):  # answered without loading anything
        from plan_llama import __version__

        sys.stdout.write(f"plan-llama {__version__}\n")
        return
    from plan_llama.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
