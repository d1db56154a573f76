"""Import a package without what this benchmark does not need of it, such as its image files or its text encoder."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Stub(ModuleType):
    """A module whose every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Stubs(MetaPathFinder, Loader):
    """Find a stub for each of the packages named, and for all that lies inside them."""

    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        inside = any(name == package or name.startswith(f"{package}.") for package in self.packages)
        return ModuleSpec(name, self, is_package=True) if inside else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def stub_packages(*packages: str) -> Iterator[None]:
    """Import inside this block what needs `packages`. Real packages of these names are hidden, and back afterwards."""
    finder = Stubs(packages)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if finder.find_spec(name)}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, Stub)]:
            del sys.modules[name]
        sys.modules.update(hidden)
