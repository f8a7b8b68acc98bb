"""Laws about the source tree: floors, sizes, who may communicate, docstrings, forbidden names.

Each law is a function from a file's path and text to a list of complaints, each of which says what
to do; `BAD` and `GOOD` at the end show that every law can fail and what it lets through.
"""

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from floors import FLOORS

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ("jaxdist", "tests", "examples", "benchmarks", "configs")
LINES, MEDIAN = 500, 300
COLLECTIVES = {"psum", "pmean", "pmin", "pmax", "psum_scatter", "ppermute", "pshuffle"}
COLLECTIVES |= {"all_gather", "all_to_all", "axis_index", "axis_size", "pcast"}
VARYING = {"pcast", "manual_axis_type"}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "torch", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "import_module", "allow_pickle"}
VAGUE = {"utils", "util", "core", "common", "_src", "helpers", "misc"}
PLAIN_BASES = {"NamedTuple", "Protocol", "Enum", "IntEnum", "StrEnum"}


def module_of(path: str) -> list[str]:
    """jaxdist/models/mlp.py -> ["jaxdist", "models", "mlp"]; an __init__ is its package."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def name_of(node: ast.AST) -> str:
    """The last part of a name: `jax.lax.psum` -> "psum", `typing.Protocol[T]` -> "Protocol"."""
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    if isinstance(node, ast.Constant):  # an annotation in quotes
        return str(node.value)
    return getattr(node, "attr", None) or getattr(node, "id", "")


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module or name that is imported, at any depth, as (line, absolute dotted name)."""
    package = module_of(path) if path.endswith("__init__.py") else module_of(path)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def used_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names and attributes that are used, imported, or asked for by getattr with a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, name_of(node)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func) == "getattr":
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def floor_of(parts: list[str]) -> int | None:
    """The floor of a module under jaxdist, None if it has none."""
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in FLOORS:
            return FLOORS[".".join(parts[:length])]
    return None


def floors(path: str, source: str) -> list[str]:
    """(a) A module imports from floors below its own, or from its own folder."""
    own = module_of(path)[1:]
    if not own:
        return []  # jaxdist/__init__.py gathers all floors
    here = floor_of(own)
    if here is None:
        return [f"{path}: jaxdist.{'.'.join(own)} has no floor: give it one in tests/floors.py"]
    wrong = []
    for line, name in imports(path, ast.parse(source)):
        other = name.split(".")[1:]
        if name.split(".")[0] != "jaxdist" or other[:1] == own[:1]:
            continue
        there = floor_of(other)
        if there is None:
            wrong.append(f"{path}:{line}: imports {name}: name the module, and give it a floor")
        elif there >= here:
            wrong.append(
                f"{path}:{line}: floor {here} imports {name} of floor {there}: import only from "
                "below, or move what both need to a lower floor"
            )
    return wrong


def length(path: str, source: str) -> list[str]:
    """(b) No file over 500 lines."""
    lines = source.count("\n") + 1
    return [f"{path}: {lines} lines, at most {LINES}: split it by idea"] if lines > LINES else []


def median_length(sources: dict[str, str]) -> list[str]:
    """(b) The median file is under 300 lines."""
    median = statistics.median(source.count("\n") + 1 for source in sources.values())
    return [] if median < MEDIAN else [f"the median file has {median} lines: split by idea"]


def collectives(path: str, source: str) -> list[str]:
    """(c) Collectives live in worker, mixing and reduction; shard_map in lanes."""
    module = module_of(path)[1:2]
    wrong = []
    for line, name in used_names(ast.parse(source)):
        if name in COLLECTIVES and module not in (["worker"], ["mixing"], ["reduction"]):
            cure = "use jaxdist.worker, jaxdist.mixing or jaxdist.reduction"
        elif name in VARYING and module != ["worker"]:
            cure = "only worker.py knows what varies: use worker.vary, or add what is missing there"
        elif name == "shard_map" and module != ["lanes"]:
            cure = "only lanes map over devices: use jd.execute"
        else:
            continue
        wrong.append(f"{path}:{line}: names {name}: {cure}")
    return wrong


def numpy_only(path: str, source: str) -> list[str]:
    """(d) Topologies and permutations are NumPy only."""
    if module_of(path)[1:2] not in (["topology"], ["permutations"]):
        return []
    jaxes = {"jax", "jaxlib", "flax", "optax"}
    return [
        f"{path}:{line}: imports {name}: a topology is a frozen NumPy value; move this to mixing.py"
        for line, name in imports(path, ast.parse(source))
        if name.split(".")[0] in jaxes
    ]


def documented(path: str, source: str) -> list[str]:
    """(e) Everything public has a docstring; a method or a topology has its sections as well."""
    tree = ast.parse(source)
    caption = (ast.get_docstring(tree) or "").split("\n\n")[0]
    wrong = []
    if "\n" in caption or not caption.endswith("."):
        wrong.append(f"{path}:1: start with a docstring: one sentence, on one line, a full stop")
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node) or ""
        if not text:
            wrong.append(f"{path}:{node.lineno}: {node.name} has no docstring: write one")
        elif isinstance(node, ast.FunctionDef):
            missing = [s for s in sections(path, node) if f"\n{s}:\n" not in f"\n{text}\n"]
            if missing:
                wrong.append(
                    f"{path}:{node.lineno}: the docstring of {node.name} lacks the sections "
                    f"{', '.join(missing)}: write them as '{missing[0]}:' on a line of its own"
                )
    return wrong


def sections(path: str, function: ast.FunctionDef) -> list[str]:
    """The docstring sections that a factory of an algorithm or a topology owes."""
    _, package, *rest = [*module_of(path), ""]
    made = {"algorithms": "Algorithm", "topology": "Topology"}.get(package)
    # What says that it returns something else is a tool; `base` has what factories are made of.
    if made is None or "base" in rest or (function.returns and name_of(function.returns) != made):
        return []
    arguments = function.args
    takes = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    first = ["Args"] if takes or arguments.vararg or arguments.kwarg else []
    last = ["Communication", "Example", "References"] if made == "Algorithm" else ["Example"]
    return [*first, "Returns", *last]


def nothing_unsafe(path: str, source: str) -> list[str]:
    """(f) Nothing that runs what a file or a string says."""
    tree = ast.parse(source)
    wrong = [
        f"{path}:{line}: imports {name}: store arrays and JSON, which can not run code"
        for line, name in imports(path, tree)
        if name.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if name_of(node.func) in UNSAFE_CALLS:
            wrong.append(f"{path}:{node.lineno}: calls {name_of(node.func)}: import it by name")
        for keyword in node.keywords:
            value = keyword.value
            off = isinstance(value, ast.Constant) and value.value is False
            if keyword.arg == "allow_pickle" and not off:
                wrong.append(f"{path}:{node.lineno}: allow_pickle: store plain arrays")
    return wrong


def plain_names_and_classes(path: str, source: str) -> list[str]:
    """(g) No folder for leftovers, and no inheritance."""
    module = module_of(path)
    wrong = [
        f"{path}: '{part}' says nothing: name it by its idea" for part in module if part in VAGUE
    ]
    allowed = set(PLAIN_BASES)
    allowed |= {"Module"} if module[1:2] == ["models"] else set()
    allowed |= {"GeneratorBasedBuilder"} if module[1:2] == ["data"] else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for base in map(name_of, node.bases):
                if base not in allowed and not re.search(
                    r"(Error|Exception|Warning|^Refused)$", base
                ):
                    wrong.append(
                        f"{path}:{node.lineno}: class {node.name} inherits from {base}: write a "
                        "NamedTuple or a frozen dataclass, and functions"
                    )
    return wrong


def no_ignores(path: str, source: str) -> list[str]:
    """(g) Lint and types pass without being told to look away."""
    return [
        f"{path}:{number}: an ignore: make the code pass, there are none in the package"
        for number, line in enumerate(source.splitlines(), 1)
        if re.search(r"#\s*(type:\s*ignore|pyright:|noqa)", line)
    ]


# Spelled in pieces, or this file would break its own law.
PRIVATE = {
    r"\.\./" + "shared|JAX_" + "NOTES|DESIGN" + r"(\.md| \d)|STYLE" + r"\.md": "working notes",
    "py"
    + "pi\\.org|python"
    + "hosted\\.org|--(extra-)?"
    + "index-url|find-"
    + "links": "a registry",
    r"(?<![\w.])/("
    + "wo"
    + r"rk|ro"
    + r"ot|ho"
    + r"me|Us"
    + r"ers|tmp/"
    + r"venv|opt/py"
    + r"pi)\b": ("a path of one machine"),
}


def nothing_private(path: str, source: str) -> list[str]:
    """(h) What is true on one machine only stays there."""
    return [
        f"{path}:{number}: mentions {what} ({found[0]}): write what a reader elsewhere can use"
        for number, line in enumerate(source.splitlines(), 1)
        for pattern, what in PRIVATE.items()
        if (found := re.search(pattern, line))
    ]


PACKAGE_LAWS = [
    floors,
    collectives,
    numpy_only,
    documented,
    nothing_unsafe,
    plain_names_and_classes,
    no_ignores,
]


def python_files(*folders: str) -> dict[str, str]:
    """Path to text of the Python files in these folders."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in found}


def tracked_files() -> dict[str, str]:
    """Path to text of all that is or will be committed; outside a checkout, of the Python files."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        return python_files(*FOLDERS)
    files = {}
    for name in listing.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:8192]:
            files[name] = path.read_text("utf-8", errors="replace")
    return files


def report(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize("law", PACKAGE_LAWS, ids=lambda law: law.__name__)
def test_the_package_keeps_the_law(law):
    report([wrong for path, text in python_files("jaxdist").items() for wrong in law(path, text)])


def test_files_are_short():
    sources = python_files(*FOLDERS)
    report([wrong for path, text in sources.items() for wrong in length(path, text)])
    report(median_length(sources))


def test_nothing_private_is_tracked():
    report([w for path, text in tracked_files().items() for w in nothing_private(path, text)])


def test_every_floor_is_a_word_and_not_a_typing_error():
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name) for name in FLOORS)


FACTORY = '''
def ring(n):
    """A ring.

    Args:
      n: how many.

    Returns:
      A `Topology`.
{}    """
'''
EXAMPLE = "\n    Example:\n      >>> ring(3)\n"
BAD = [
    (floors, "jaxdist/worker.py", "from jaxdist import executor"),
    (floors, "jaxdist/worker.py", "def f():\n    import jaxdist.algorithms.gossip"),
    (floors, "jaxdist/worker.py", "from jaxdist.worker_pool import x"),
    (floors, "jaxdist/algorithms/gossip.py", "from ..execute import execute"),
    (floors, "jaxdist/mixing.py", "from jaxdist.reduction import mean"),
    (floors, "jaxdist/mixing.py", "import jaxdist"),
    (floors, "jaxdist/mixing.py", "from jaxdist import mix"),
    (floors, "jaxdist/brand_new.py", ""),
    (length, "jaxdist/worker.py", "\n" * 500),
    (collectives, "jaxdist/algorithms/gossip.py", "jax.lax.psum(x, 'worker')"),
    (collectives, "jaxdist/executor.py", "from jax.lax import pmean as mean"),
    (collectives, "jaxdist/executor.py", "getattr(lax, 'ppermute')(x)"),
    (collectives, "jaxdist/mixing.py", "lax.pcast(x, 'worker', to='varying')"),
    (collectives, "jaxdist/mixing.py", "jax.typeof(x).manual_axis_type.varying"),
    (collectives, "jaxdist/worker.py", "jax.shard_map(f)"),
    (numpy_only, "jaxdist/topology/graphs.py", "def f():\n    import jax.numpy as jnp"),
    (numpy_only, "jaxdist/permutations.py", "from jax import numpy"),
    (documented, "jaxdist/worker.py", ""),
    (documented, "jaxdist/worker.py", '"""Two lines\nof caption."""'),
    (documented, "jaxdist/worker.py", '"""No full stop"""'),
    (documented, "jaxdist/worker.py", '"""Caption."""\ndef f(): pass'),
    (documented, "jaxdist/worker.py", '"""Caption."""\nclass C: pass'),
    (documented, "jaxdist/topology/graphs.py", '"""Caption."""' + FACTORY.format("")),
    (documented, "jaxdist/algorithms/new.py", '"""Caption."""' + FACTORY.format(EXAMPLE)),
    (nothing_unsafe, "jaxdist/checkpoint.py", "import pickle"),
    (nothing_unsafe, "jaxdist/checkpoint.py", "def f():\n    from cloudpickle import loads"),
    (nothing_unsafe, "jaxdist/checkpoint.py", "eval('1')"),
    (nothing_unsafe, "jaxdist/checkpoint.py", "builtins.exec(text)"),
    (nothing_unsafe, "jaxdist/checkpoint.py", "np.load(path, allow_pickle=True)"),
    (nothing_unsafe, "jaxdist/checkpoint.py", "np.load(path, allow_pickle=flag)"),
    (nothing_unsafe, "jaxdist/checkpoint.py", "import torch"),
    (nothing_unsafe, "jaxdist/cli.py", "importlib.import_module('jaxdist.' + name)"),
    (plain_names_and_classes, "jaxdist/utils.py", ""),
    (plain_names_and_classes, "jaxdist/_src/mixing.py", ""),
    (plain_names_and_classes, "jaxdist/executor.py", "class Trainer(Base): pass"),
    (plain_names_and_classes, "jaxdist/executor.py", "class Net(nn.Module): pass"),
    (plain_names_and_classes, "jaxdist/models/mlp.py", "class B(tfds.GeneratorBasedBuilder): pass"),
    (no_ignores, "jaxdist/executor.py", "x = 1  # type" + ": ignore[assignment]"),
    (no_ignores, "jaxdist/executor.py", "import os  # " + "noqa: F401"),
    (nothing_private, "docs/a.md", "see ../" + "shared/NOTES.md"),
    (nothing_private, "README.md", "pip install --index" + "-url x"),
    (nothing_private, ".ci/run", "/tmp/" + "venv/bin/python"),
    (nothing_private, "docs/a.md", "in /wo" + "rk/main"),
]
GOOD = [
    (floors, "jaxdist/__init__.py", "from jaxdist.cli import main"),
    (floors, "jaxdist/algorithms/gossip.py", "from jaxdist.algorithms.base import Algorithm"),
    (
        floors,
        "jaxdist/algorithms/gossip.py",
        "from . import base\nimport jax\nfrom jaxdist import mixing",
    ),
    (collectives, "jaxdist/mixing.py", "lax.ppermute(x)"),
    (collectives, "jaxdist/worker.py", "lax.pcast(x)\nlax.axis_index('worker')"),
    (collectives, "jaxdist/lanes.py", "jax.vmap(f, axis_size=4)\njax.shard_map(f)\n'psum'"),
    (numpy_only, "jaxdist/topology/graphs.py", "import numpy"),
    (documented, "jaxdist/topology/graphs.py", '"""Caption."""' + FACTORY.format(EXAMPLE)),
    (documented, "jaxdist/topology/graphs.py", '"""C."""\ndef f(n) -> float:\n    """Gap."""'),
    (documented, "jaxdist/topology/base.py", '"""C."""\ndef make(n):\n    """Makes it."""'),
    (documented, "jaxdist/worker.py", '"""Caption.\n\nPapers\n"""\ndef _private(): pass'),
    (nothing_unsafe, "jaxdist/checkpoint.py", "jax.eval_shape(f)\nnp.load(p, allow_pickle=False)"),
    (plain_names_and_classes, "jaxdist/models/mlp.py", "class Net(nn.Module): pass"),
    (
        plain_names_and_classes,
        "jaxdist/worker.py",
        "class E(ValueError): pass\nclass T(NamedTuple): pass",
    ),
    (no_ignores, "jaxdist/executor.py", "x = 1  # ignore the first step"),
    (nothing_private, ".ci/run", "#!/usr/bin/env bash\nsrc/wo" + "rk/a https://a.b/ro" + "ot"),
]


@pytest.mark.parametrize(("law", "path", "source"), BAD)
def test_every_law_can_fail(law, path, source):
    complaints = law(path, source)
    assert complaints
    assert all(complaint.startswith(path) for complaint in complaints)


def test_the_median_can_fail():
    assert median_length({"a.py": "\n" * 299, "b.py": "\n" * 400})
    assert not median_length({"a.py": "\n" * 100, "b.py": "\n" * 400})


@pytest.mark.parametrize(("law", "path", "source"), GOOD)
def test_every_law_lets_the_right_thing_through(law, path, source):
    assert law(path, source) == []


def test_every_law_is_shown_to_fail():
    assert {*PACKAGE_LAWS, length, nothing_private} == {law for law, _, _ in BAD}
