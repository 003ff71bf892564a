"""The compute graphs of the vision towers that llama.cpp's multimodal library knows."""
