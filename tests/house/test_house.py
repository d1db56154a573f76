"""The house rules that a machine can hold: who imports whom, sizes, names that are forbidden, and no work at import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "unmask"
FILES = sorted(SRC.rglob("*.py"))
TREES = {f.relative_to(SRC).as_posix(): ast.parse(f.read_text(encoding="utf-8")) for f in FILES}

ORDER = (
    "errors", "lazy", "method", "runtime", "decoding", "storage", "tokenizers", "data", "training", "pretrained",
    "figures", "metrics", "recipes", "published", "pipelines", "experiments", "evaluation", "app", "cli",
)  # fmt: skip
"""The folders of src/unmask: a module imports from its own, or from those earlier in this list."""
PACKAGE = {"__init__", "__main__"}

every_file = pytest.mark.parametrize("name", TREES)


def part_of(name: str) -> str:
    """The folder of a file such as "method/sampling/decode.py", or its own name at the top."""
    return name.split("/")[0].removesuffix(".py")


METHOD = [name for name in TREES if part_of(name) == "method"]


def imports(name: str) -> set[str]:
    """Dotted names of everything that a file imports, at any depth: `from a import b` counts as a.b."""
    found = set()
    package = ["unmask", *name.split("/")[:-1]]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def own_parts(name: str) -> set[str]:
    """Top-level parts of unmask that a file imports."""
    return {dotted.split(".")[1] for dotted in imports(name) if dotted.startswith("unmask.")}


def functions(name: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(TREES[name]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


# -- who imports whom -------------------------------------------------------------------------------------------------


def later_parts(name: str, parts: set[str]) -> set[str]:
    """Those of `parts` that a file must not import: folders later in the list, and the package that holds them all."""
    allowed = ORDER[: ORDER.index(part_of(name)) + 1]
    return parts - {*allowed}


@every_file
def test_imports_point_to_earlier_folders(name):
    if part_of(name) not in PACKAGE:
        assert not later_parts(name, own_parts(name))


def test_the_order_is_of_the_folders_that_there_are():
    assert {part_of(name) for name in TREES} - PACKAGE == {*ORDER}


def test_an_import_of_a_later_folder_is_found():
    assert later_parts("storage/files.py", {"errors", "storage", "data"}) == {"data"}
    assert later_parts("method/rand.py", {"__version__"}) == {"__version__"}


def test_a_folder_of_one_file_is_none():
    folders = {Path(name).parent for name in TREES if "/" in name}
    for folder in folders:
        files = [name for name in TREES if folder in Path(name).parents and not name.endswith("__init__.py")]
        assert len(files) > 1, folder


@pytest.mark.parametrize("name", METHOD)
def test_the_method_imports_torch_only(name):
    tops = {dotted.split(".")[0] for dotted in imports(name)}
    foreign = tops - sys.stdlib_module_names - {"torch", "jaxtyping", "unmask"}
    assert not foreign


@pytest.mark.parametrize("name", [n for n in METHOD if not n.startswith("method/models/")])
def test_the_method_takes_callables_not_models(name):
    assert not [dotted for dotted in imports(name) if dotted.startswith("unmask.method.models")]


@pytest.mark.parametrize("name", [n for n in METHOD if n.startswith("method/sampling/")])
def test_samplers_take_nothing_but_tokens_and_callables(name):
    for function in functions(name):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        text = " ".join(f"{a.arg} {ast.unparse(a.annotation) if a.annotation else ''}" for a in arguments)
        assert not re.search(r"(?i)\b(model|module|nn\.|tokenizer|\w*config|device|progress)", text), function.name
        assert function.args.kwarg is None, function.name


@every_file
def test_only_one_file_knows_ranks(name):
    users = {dotted for dotted in imports(name) if dotted.startswith("torch.distributed")}
    users |= {ast.unparse(n) for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute)
              and ast.unparse(n).startswith("torch.distributed")}  # fmt: skip
    if name == "runtime/distributed.py":
        assert users
    elif name == "training/checkpoint.py":
        assert all(re.match(r"torch\.distributed\.(checkpoint|tensor)\b", u) for u in users), users
    else:
        assert not users


ONE_FAMILY = {"Amused", "UVit2D", "GoogleMaskGIT"}
"""Networks that need more than a class, or lack "no class": `pretrained.conditions` handles them for all others."""
NETWORK_UNIONS = {"AnyGeneratorConfig", "GeneratorConfig", "LearnedConfig"}
"""What `recipes/spec.py` may import of `pretrained`: the networks that a recipe can name."""


def families_known(tree: ast.AST) -> set[str]:
    """Names of `ONE_FAMILY` in a file: imported, as `amused.Amused`, or as words of a string such as an annotation."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= {node.name.split(".")[-1], node.asname or ""}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {*re.findall(r"\w+", node.value)}
    return found & ONE_FAMILY


@every_file
def test_only_pretrained_knows_a_family(name):
    if part_of(name) != "pretrained":
        assert not families_known(TREES[name])


def test_a_recipe_knows_networks_by_their_union():
    known = {dotted for dotted in imports("recipes/spec.py") if dotted.startswith("unmask.pretrained")}
    assert known <= {f"unmask.pretrained.networks.{union}" for union in NETWORK_UNIONS}


@pytest.mark.parametrize("line", [
    "from unmask.pretrained.amused import Amused", "from unmask.pretrained.google import GoogleMaskGIT as G",
    "isinstance(model, amused.UVit2D)", "x: 'GeneratorConfig | Amused'", "getattr(google, 'GoogleMaskGIT')",
])  # fmt: skip
def test_a_known_family_is_found(line):
    assert families_known(ast.parse(line))
    assert not families_known(ast.parse("takes_prompts(model)"))


def test_the_families_are_those_of_pretrained():
    defined = {n.name for name, tree in TREES.items() if part_of(name) == "pretrained" for n in ast.walk(tree)
               if isinstance(n, ast.ClassDef)}  # fmt: skip
    assert defined >= ONE_FAMILY


# -- sizes ------------------------------------------------------------------------------------------------------------


CORE = (
    "schedules", "rand", "masking", "objectives", "cross_entropy", "guidance", "sampling/decode",
    "sampling/priorities", "models/configs", "models/layers", "models/conditioning", "models/transformer",
)  # fmt: skip
"""Of the method, what a reader takes in at one sitting; the rest are extensions beside it."""


def test_the_core_of_the_method_is_read_at_one_sitting():
    assert sum(len((SRC / "method" / f"{n}.py").read_text().splitlines()) for n in CORE) <= 1500


@pytest.mark.parametrize("name", [f"method/{n}.py" for n in CORE])
def test_the_core_needs_no_extension(name):
    inside = {dotted.removeprefix("unmask.method.") for dotted in imports(name) if dotted.startswith("unmask.method.")}
    core = {n.replace("/", ".") for n in CORE}
    assert all(any(dotted == n or dotted.startswith(f"{n}.") for n in core) for dotted in inside), inside


@every_file
def test_files_are_short(name):
    assert len((SRC / name).read_text().splitlines()) <= 400


@every_file
def test_functions_are_short(name):
    for f in functions(name):
        limit = 120 if name in ("training/loop.py", "training/tokenizer_loop.py") and f.name.startswith("train") else 80
        first = min([f.lineno, *(d.lineno for d in f.decorator_list)])
        assert f.end_lineno - first + 1 <= limit, f"{name}: {f.name}"


COMPOUND = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)


def depth(node: ast.AST, inside: int = 0) -> int:
    """How deeply compound statements nest; an `elif` is no deeper than its `if`, and a nested function starts anew."""
    deepest = inside
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef | ast.Lambda):
                continue
            is_elif = isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If) and len(value) == 1
            deeper = isinstance(child, COMPOUND) and not is_elif
            deepest = max(deepest, depth(child, inside + deeper))
    return deepest


@every_file
def test_nesting_is_shallow(name):
    deep = {f.name: depth(f) for f in functions(name) if depth(f) > 3}
    assert not deep


def test_the_nesting_meter():
    def of(body: str) -> int:
        return depth(ast.parse("def f():\n" + body).body[0])

    assert of(" x = 1") == 0
    assert of(" if a:\n  x\n elif b:\n  y\n else:\n  z") == 1
    assert of(" for a in b:\n  if c:\n   with d:\n    while e:\n     x") == 4
    assert of(" try:\n  x\n except E:\n  if y:\n   z") == 2


# -- things that must not be there ------------------------------------------------------------------------------------


@every_file
def test_names_say_what_a_thing_is(name):
    assert not set(Path(name).with_suffix("").parts) & {"utils", "util", "helpers", "helper", "common", "misc"}
    classes = [n.name for n in ast.walk(TREES[name]) if isinstance(n, ast.ClassDef)]
    assert not [c for c in classes if re.search(r"(Manager|Handler|Wrapper)$", c)]


@every_file
def test_only_the_command_line_and_the_log_print(name):
    if name.startswith("cli") or name in ("training/log.py", "runtime/progress.py"):
        return
    assert not [n.lineno for n in ast.walk(TREES[name]) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]


@every_file
def test_no_broad_except(name):
    """But for one place: an event of the web page that fails tells it there, and the server lives on."""
    if name == "app/studio.py":
        return
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            caught = [] if node.type is None else node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            assert caught, f"{name}:{node.lineno}: bare except"
            assert not {ast.unparse(c) for c in caught} & {"Exception", "BaseException"}, f"{name}:{node.lineno}"


@every_file
def test_no_foreign_code_is_run(name):
    """Nothing is unpickled anywhere: files of others are read as data (`pretrained.foreign`)."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "yaml", "marshal"}
    assert not {d.split(".")[0] for d in imports(name)} & unsafe
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            forbidden = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}
            assert ast.unparse(node.func) not in forbidden, f"{name}:{node.lineno}"
            pickled = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            assert not pickled, f"{name}:{node.lineno}"


@every_file
def test_no_annotation_is_postponed_where_shapes_are_types(name):
    found = imports(name)
    assert not ("__future__.annotations" in found and any(d.startswith("jaxtyping.") for d in found))


@every_file
def test_no_keyword_is_swallowed(name):
    """A function takes open keywords only by a TypedDict, which type checkers know and the function checks."""
    public = [f.args.kwarg for f in functions(name) if not f.name.startswith("_") and f.args.kwarg is not None]
    typed = [a for a in public if a.annotation is not None and ast.unparse(a.annotation).startswith("Unpack[")]
    assert public == typed


@pytest.mark.parametrize("name", METHOD)
def test_the_sampling_and_training_method_draws_no_global_noise(name):
    """`models` may draw their initial weights; everything else draws through `rand`."""
    drawn = r"torch\.(rand|randn|randint|randperm|rand_like|randn_like|multinomial|bernoulli|manual_seed|seed)$"
    calls = [ast.unparse(n.func) for n in ast.walk(TREES[name]) if isinstance(n, ast.Call)]
    if not name.startswith("method/models/"):
        assert not [c for c in calls if re.match(drawn, c)]
        assert not {d.split(".")[0] for d in imports(name)} & {"random", "numpy", "secrets"}


@pytest.mark.parametrize("name", METHOD)
def test_the_method_moves_nothing_to_a_named_device(name):
    calls = [ast.unparse(n) for n in ast.walk(TREES[name]) if isinstance(n, ast.Call)]
    assert not [c for c in calls if re.search(r"\.cuda\(|\.to\(['\"]|\.to\(device", c)]


def texts() -> list[Path]:
    """Every text file that ships or documents the project, this one aside: it has to spell out what it looks for."""
    folders = ("src", "tests", "examples", "benchmarks", "docs")
    kinds = {".py", ".md", ".toml", ".json"}
    found = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in kinds]
    found += [f for f in (ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "Makefile") if f.is_file()]
    return [f for f in found if f != Path(__file__) and "__pycache__" not in f.parts]


@pytest.mark.parametrize("path", texts(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_path_or_host_of_one_machine(path):
    text = path.read_text(encoding="utf-8")
    places = r"(?<![\w.~/<}-])/(work|home|root|mnt|Users|scratch|workspace|opt|usr/local)/\w+"
    hosts = r"(?i)\b(index-url|extra-index|artifactory|nexus|devpi)\b"
    found = [m.group() for m in (*re.finditer(places, text), *re.finditer(hosts, text))]
    assert not found


# -- no work at import time -------------------------------------------------------------------------------------------


def python(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_unmask_loads_no_optional_package():
    heavy = {"matplotlib", "sklearn", "tyro", "wandb", "tensorboard", "rich", "PIL"}
    loaded = python("import sys, unmask; print(*{m.split('.')[0] for m in sys.modules})").split()
    assert not heavy & set(loaded)


def test_importing_every_module_changes_nothing_and_says_nothing():
    names = ["unmask." + n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in TREES]
    names = sorted("unmask" if n == "unmask.__init__" else n for n in names if not n.endswith("__main__"))
    code = f"""
import importlib, os, signal, warnings
import matplotlib, torch
def state():
    return (torch.get_rng_state().sum().item(), torch.initial_seed(), torch.get_num_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.cuda.is_initialized(),
            torch.distributed.is_initialized(), dict(os.environ), signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGINT), torch.backends.cuda.matmul.allow_tf32)
before = state()
for name in {names!r}:
    importlib.import_module(name)
assert state() == before, (state(), before)
"""
    assert python(code) == ""


# -- names ------------------------------------------------------------------------------------------------------------

MODULE_PROTOCOLS = {"recipe", "translate", "main"}
"""Functions that each module of a kind defines: recipes, families of published weights, programs."""


def top_level_names(tree: ast.Module) -> list[str]:
    """Return the public names that a module defines at its top level; overloads count once."""
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            overloaded = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
            found += [] if overloaded else [node.name]
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
    return [name for name in found if not name.startswith("_") and len(name) > 1]


def names_defined_twice(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Return the names that two modules define, with the modules."""
    places: dict[str, list[str]] = {}
    for file, tree in trees.items():
        for name in dict.fromkeys(top_level_names(tree)):
            places.setdefault(name, []).append(file)
    return {name: files for name, files in places.items() if len(files) > 1 and name not in MODULE_PROTOCOLS}


def test_one_name_has_one_meaning():
    assert names_defined_twice(TREES) == {}


def test_a_name_that_is_defined_twice_is_found():
    trees = {file: ast.parse(text) for file, text in {"a.py": "def load(): ...", "b.py": "load: int = 1"}.items()}
    assert names_defined_twice(trees) == {"load": ["a.py", "b.py"]}


VERBS = {
    "accumulate",
    "add",
    "adopt",
    "aggregate",
    "animate",
    "anneal",
    "append",
    "apply",
    "arrange",
    "attach",
    "attempt",
    "attend",
    "average",
    "begin",
    "bind",
    "bound",
    "broadcast",
    "build",
    "catch",
    "change",
    "check",
    "choose",
    "claim",
    "classify",
    "clear",
    "close",
    "collect",
    "compare",
    "compile",
    "compute",
    "connect",
    "convert",
    "copy",
    "correct",
    "corrupt",
    "count",
    "create",
    "crop",
    "cut",
    "cycle",
    "decode",
    "describe",
    "detach",
    "disable",
    "discard",
    "distribute",
    "download",
    "draw",
    "drop",
    "dump",
    "edit",
    "embed",
    "encode",
    "end",
    "escape",
    "estimate",
    "evaluate",
    "exclude",
    "expand",
    "expect",
    "export",
    "extend",
    "extract",
    "fetch",
    "fill",
    "find",
    "finish",
    "fit",
    "flatten",
    "forbid",
    "forget",
    "format",
    "free",
    "gather",
    "generate",
    "get",
    "group",
    "hash",
    "hide",
    "hold",
    "identify",
    "infill",
    "inpaint",
    "invert",
    "join",
    "keep",
    "label",
    "link",
    "list",
    "load",
    "lock",
    "look",
    "make",
    "mask",
    "match",
    "measure",
    "merge",
    "mirror",
    "move",
    "multiply",
    "name",
    "narrow",
    "normalize",
    "notify",
    "number",
    "open",
    "orthogonalize",
    "overlay",
    "pack",
    "pad",
    "paint",
    "parse",
    "paste",
    "patch",
    "permute",
    "pick",
    "place",
    "plan",
    "plot",
    "pool",
    "predict",
    "prepare",
    "print",
    "prune",
    "push",
    "query",
    "raise",
    "read",
    "rebuild",
    "receive",
    "record",
    "reduce",
    "refresh",
    "refuse",
    "remember",
    "remove",
    "rename",
    "render",
    "reopen",
    "replace",
    "replay",
    "report",
    "require",
    "reset",
    "reshard",
    "resize",
    "resolve",
    "restore",
    "resume",
    "rotate",
    "round",
    "run",
    "sample",
    "save",
    "say",
    "scale",
    "score",
    "search",
    "send",
    "serve",
    "set",
    "shard",
    "share",
    "shift",
    "shorten",
    "show",
    "silence",
    "skip",
    "sort",
    "split",
    "spread",
    "start",
    "stop",
    "store",
    "stratify",
    "stream",
    "stretch",
    "suggest",
    "sum",
    "survey",
    "survive",
    "swap",
    "sweep",
    "sync",
    "take",
    "tell",
    "tokenize",
    "trace",
    "train",
    "transfer",
    "transform",
    "translate",
    "trim",
    "trust",
    "try",
    "unflatten",
    "tune",
    "unpack",
    "unwrap",
    "update",
    "upload",
    "upsample",
    "use",
    "validate",
    "verify",
    "view",
    "wait",
    "walk",
    "warn",
    "watch",
    "widen",
    "wrap",
    "write",
}
STATEMENTS = {"is", "has", "have", "can", "takes", "packs", "needs"}
"""First words of functions that answer yes or no."""
FIXED_NAMES = {
    # the method's own words, which DESIGN and the papers fix
    "guided", "guided_with_memory", "ratios", "ratios_from_counts", "seeded", "at", "recipe", "main",
    # names that torch, Python or the Hugging Face libraries give
    "forward", "backward", "step", "parameters", "named_parameters", "autocast", "barrier", "from_pretrained",
    "from_json", "redirect_request", "pass_gradient_through", "flush",
}  # fmt: skip


def functions_that_are_no_verbs(tree: ast.Module) -> list[str]:
    """Return the public functions and methods, other than properties, whose name does not start with a verb."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.name in FIXED_NAMES:
            continue
        if any("property" in ast.unparse(decorator) or ".setter" in ast.unparse(decorator)
               for decorator in node.decorator_list):  # fmt: skip
            continue
        first = node.name.split("_")[0]
        is_conversion = first == "to"
        if first not in VERBS | STATEMENTS and not is_conversion:
            found.append(node.name)
    return found


@every_file
def test_functions_are_verbs(name):
    nested = {inner.name for f in functions(name) for inner in ast.walk(f)
              if isinstance(inner, ast.FunctionDef) and inner is not f}  # fmt: skip
    assert [f for f in functions_that_are_no_verbs(TREES[name]) if f not in nested] == []


def test_a_function_that_is_no_verb_is_found():
    source = """
def told(): ...
def read_rows(): ...
class A:
    def opened(self): ...
    @property
    def length(self): ...
"""
    assert functions_that_are_no_verbs(ast.parse(source)) == ["told", "opened"]


def test_every_name_is_defined():
    """Lint and mypy leave undefined names alone, because shapes such as `Float[Tensor, "b n"]` look like them."""
    pytest.importorskip("ruff")
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F821",
            "--output-format",
            "concise",
            str(SRC),
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    undefined = [line.split(":", 3) for line in found if "F821" in line]
    assert len(undefined) > 50  # the shapes
    wrong = []
    for file, row, column, message in undefined:
        before = Path(file).read_text().splitlines()[int(row) - 1][: int(column) - 1]
        is_axis = before.count('"') % 2 and re.search(r"`[a-z_]+`", message)  # in a string, in small letters
        wrong += [] if is_axis else [f"{file}:{row}: {message}"]
    assert not wrong
