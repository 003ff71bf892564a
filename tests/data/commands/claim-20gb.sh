llama-server -m GLM-5.1-UD-IQ2_M.gguf -ngl 38 -c 4096 --mmap --mlock --flash-attn --defrag-thold 0.1
