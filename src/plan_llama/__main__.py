"""`plan-llama` and `python -m plan_llama`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):  # answered without loading anything
        from plan_llama import __version__

        sys.stdout.write(f"plan-llama {__version__}\n")
        return
    import gc

    from plan_llama.cli.app import run

    gc.disable()  # a short life and many small objects: collecting costs a tenth of a plan and frees nothing
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
