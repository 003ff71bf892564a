#!/bin/sh
# A command as guides give it, for one 24 GiB card and 256 GiB of memory. Nothing of it is executed.
set -eu

code=0
plan-llama check --gpu 24GiB --ram 256GiB -- \
    llama-server -m GLM-5.1-UD-IQ2_M.gguf -ngl 47 -c 4096 --mmap --mlock --flash-attn || code=$?

if [ "$code" -eq 3 ]; then
    echo "The command would not run; the corrected one is above."
elif [ "$code" -ne 0 ]; then
    exit "$code"
fi
