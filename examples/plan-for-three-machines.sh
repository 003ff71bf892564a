#!/bin/sh
# The same model on three described machines: verdict, experts on the CPU and tokens per second.
set -eu

line='import json, sys
a = json.load(sys.stdin)
rate = a["speed"]["decode_tok_s"]
print("%-15s %2d layers with experts on the CPU, %.1f to %.1f tok/s"
      % (a["verdict"], a["settings"]["cpu_moe_layers"], rate["low"], rate["high"]))'

for machine in rtx4090-128 rtx-pro-6000-512 mac-studio-m3-ultra-512; do
    printf '%-25s ' "$machine"
    # Exit code 3 means that nothing fits: an answer too, and the JSON is there.
    answer=$(plan-llama --model glm-5.1 --quant UD-IQ2_M --hardware "$machine" --json) || [ $? -eq 3 ]
    printf '%s' "$answer" | python3 -c "$line"
done
