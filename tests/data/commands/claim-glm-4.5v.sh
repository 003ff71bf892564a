llama-server -m GLM-4.5V-F16.gguf --mmproj mmproj-F16.gguf -ngl 99 -c 8192
