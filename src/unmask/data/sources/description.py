"""Sources of data in words that may leave the machine: no path, host or user name."""

import re
from pathlib import Path

from unmask.data.sources.choice import Codes, PictureSource, Shards
from unmask.data.sources.cifar import Cifar10
from unmask.data.sources.hub import HubImages
from unmask.data.sources.mnist import Mnist
from unmask.data.text.sources import HubText, TextFile
from unmask.storage.remote import is_remote


def describe_source(source: PictureSource | Codes | TextFile | HubText) -> str:
    """Return what a source is, without where it lies: "MNIST", "a folder of images", "the Hub dataset OWNER/NAME"."""
    if isinstance(source, HubImages | HubText):
        public = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.name) and not Path(source.name).exists()
        kind = "images" if isinstance(source, HubImages) else "texts"
        return f"the Hugging Face dataset {source.name}" if public else f"a local dataset of {kind}"
    if isinstance(source, Mnist):
        return "MNIST" if source.path is None else "images in the format of MNIST"
    if isinstance(source, Cifar10):
        return "CIFAR-10"
    place = "remote" if isinstance(source, TextFile | Shards) and is_remote(source.path) else "local"
    if isinstance(source, TextFile):
        return f"{place} text files"
    known = {"Digits": "scikit-learn's handwritten digits", "Arrays": "an array of images", "Codes": "a token dataset"}
    return known.get(type(source).__name__, f"{place} image files")


def describe_images(source: PictureSource | Codes, num: int, classes: tuple[str, ...]) -> str:
    """Return a sentence on a training set of images."""
    kinds = f" of {len(classes)} classes" if classes else ""
    return f"{num:,} images{kinds}: {describe_source(source)}"


def describe_texts(source: TextFile | HubText, documents: int, tokens: int) -> str:
    """Return a sentence on a training set of texts."""
    return f"{documents:,} document{'s' * (documents != 1)}, {tokens:,} tokens: {describe_source(source)}"
