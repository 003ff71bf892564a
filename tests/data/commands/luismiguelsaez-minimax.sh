#!/bin/bash

./llama.cpp/build/bin/llama-server \
  -v \
  --host 0.0.0.0 \
  --port 8002 \
  --model ~/.cache/huggingface/hub/Ex0bit_MiniMax-M2.1-PRISM_MiniMax-M2.1-PRISM-IQ4_NL.gguf \
  --alias coding-agent \
  --threads 40 \
  --ctx-size 196608 \
  --n-predict 196608 \
  --batch-size 512 \
  --no-context-shift \
  --flash-attn on \
  --repeat-penalty 1.05 \
  --temp 1.0 \
  --top-k 40 \
  --min-p 0.0 \
  --top-p 0.95 \
  --jinja \
  --fit on \
  --reasoning-format auto \
  --no-mmap \
  --tensor-split 1,1,1,1 \
  --gpu-layers 999 \
  --override-tensor "blk\.(1|2|3|4|5|6)\.ffn_.*_exps\.weight=CPU","blk\.(17|18|19|20|21|22)\.ffn_.*_exps\.weight=CPU","blk\.(33|34|35|36|37|38)\.ffn_.*_exps\.weight=CPU","blk\.(49|50|51|52|53|54)\.ffn_.*_exps\.weight=CPU" \
  >/tmp/llamacpp.log 2>&1 &
