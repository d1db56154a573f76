"""What the name of a model may be, for usage lines and errors."""

MODEL_NAMES = "a run, an export, one of unmask models or hf-hub:OWNER/NAME"
"""What the name of a model may be."""
