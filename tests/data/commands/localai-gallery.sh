llama-server -m "gemmable-4-12b-fp16.gguf"
llama-server -m "gemmable-4-12b-Q4_K_M.gguf" \
  --spec-draft-model "gemmable-4-12b-Q4_K_M-mtp.gguf" \
  --spec-type draft-mtp \
  --spec-draft-n-max 4
