"""Turn a torch file (.pth, .pt, .ckpt, .bin) into a safetensors file, in a program that `foreign/reader.py` starts.

The program is a child process with limits. It imports only the standard library, builds no object that a pickle names,
and calls nothing that a pickle asks for. It reads the pickle as a description of tensors, and copies their bytes.
"""
