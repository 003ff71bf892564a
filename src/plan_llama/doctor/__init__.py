"""Why it ran out of memory, fell back to the CPU, is slow, or did not load.

`reader` turns logs into `evidence` (facts and the lines that rules know), `judge` holds the rules against it. Whatever
else gathers evidence (a process that is watched, a probe of the machine) feeds the same reader lines, or sets the
same facts. Nothing here opens files, asks the machine or prints.
"""
