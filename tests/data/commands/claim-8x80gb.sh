llama-server -m GLM-5.1-Q4_K_M.gguf -ngl 99 -c 200000
