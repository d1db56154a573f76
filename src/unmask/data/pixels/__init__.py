"""Turn the bytes of an image into pixels, with Pillow and NumPy alone: no torch, and nothing else of unmask.

So a child process with limits can do it for a stranger's image (`data/untrusted.py`), in a third of a second.
"""


class BadImage(Exception):
    """An image that is not used; the message is the reason, without the path."""
