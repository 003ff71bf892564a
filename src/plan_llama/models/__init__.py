"""What a model is: the GGUF reader, tensor tables, the catalog and the files already on the machine."""
