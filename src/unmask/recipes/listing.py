"""The names of the recipes in the package, found without importing them."""

import pkgutil
from pathlib import Path

_OTHER_MODULES = ("listing", "reading", "schema", "spec")


def list_recipe_names(*, tokenizers: bool = False) -> list[str]:
    """Return the names of the recipes that `unmask train` takes, or of those that `unmask train-tokenizer` takes."""
    modules = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    found = sorted(name.replace("_", "-") for name in modules if name not in _OTHER_MODULES)
    return [name for name in found if name.endswith("-tokenizer") == tokenizers]
