"""A program of its own that turns a torch file (.pth, .pt, .ckpt, .bin) into a safetensors file: `foreign.py` starts it
as a child process with limits. It imports the standard library only, builds no object that a pickle names, and calls
nothing that a pickle asks for: the pickle is read as a description of tensors, and their bytes are copied."""
