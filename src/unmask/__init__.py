"""unmask: masked generative transformers. Training masks tokens; sampling unmasks them."""

__version__ = "0.1.0"
