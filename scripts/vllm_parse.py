"""Ask vLLM's own argument parser about commands: `vllm_parse.py < commands.json > answers.json`.

Runs in the environment of scripts/vllm_environment.py. The input is a list of the words behind `vllm serve`; the output
has, for each, null where the parser and the checks of `serve` take them, else what they say. With `--arguments` nothing
is read, and the answer lists every argument: its spellings, and the values that it takes where they are fixed.
"""

import contextlib
import io
import json
import os
import sys
from typing import Any

os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_LOGGING_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""}

from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser


def refusal(words: list[str]) -> str | None:
    """What vLLM says to a command; None where it takes it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            args = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(words)
            validate_parsed_serve_args(args)
            if args.tool_call_parser and args.tool_call_parser not in ToolParserManager.list_registered():
                return f"no tool parser {args.tool_call_parser}"
            if (
                args.reasoning_parser
                and args.reasoning_parser not in ReasoningParserManager.list_registered()
            ):
                return f"no reasoning parser {args.reasoning_parser}"
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is the answer
        return f"{type(error).__name__}: {error}"
    return None


def arguments() -> list[dict[str, Any]]:
    """Every argument of the parser."""
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    found = []
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            hidden = getattr(action, "negative_option_strings", set())
            found.append(
                {
                    "spellings": sorted(set(action.option_strings) - set(hidden)),
                    "negations": sorted(set(action.option_strings) & set(hidden)),
                    "values": sorted(map(str, action.choices)) if action.choices else [],
                }
            )
    return found


if __name__ == "__main__":
    answer = (
        arguments() if sys.argv[1:] == ["--arguments"] else [refusal(words) for words in json.load(sys.stdin)]
    )
    json.dump(answer, sys.stdout)
