#!/usr/bin/env python3
"""The longest context that still writes fast enough: pick_context.py TOKENS_PER_SECOND [plan-llama's options]."""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    wanted = float(sys.argv[1])
    argv = ["plan-llama", *sys.argv[2:], "--json"]  # the one on PATH, as in a shell
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 3):  # plan-llama has said why on standard error
        return done.returncode
    ladder = json.loads(done.stdout)["ladder"]
    good = [
        rung for rung in ladder if rung["verdict"] in ("fits", "tight") and rung["decode_tok_s"] >= wanted
    ]
    if not good:
        sys.stdout.write(f"no context reaches {wanted:g} tok/s on this machine\n")
        return 3
    best = max(good, key=lambda rung: rung["context"])
    sys.stdout.write(f"--ctx {best['context']}  ({best['decode_tok_s']:.1f} tok/s, -ub {best['ubatch']})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
