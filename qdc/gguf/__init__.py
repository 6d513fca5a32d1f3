"""Models as one GGUF file, which llama.cpp reads: names, keys, vocabulary, and the file itself."""
