"""Changes one thing in a file at a time and looks whether its tests notice: mutation testing.

    pip install mutmut coverage
    python tests/benchmarks/mutation.py                 # every file that mutation.toml names
    python tests/benchmarks/mutation.py _module/axes.py # one of them
    python tests/benchmarks/mutation.py --keep          # go on, or try again what was not noticed
    python tests/benchmarks/mutation.py --sample 100 --seed 1   # as many of each file, at random

The changes are those of mutmut, and two more: a call whose value is not used is left out, a
condition is turned round. mutmut's own runner leaves out functions with decorators, properties and
constants, so that files are changed here instead, in a copy of the project. Every change is tried
in a fork of one process that has imported what the tests import, on those tests alone that pass
through the changed lines, the fastest first. Left alone are annotations, docstrings and the
wording of errors; left out are changes that mostly end in an error whatever is tested: None in
place of every argument and every value assigned.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import coverage
import hypothesis
import libcst as cst
import pytest
from mutmut.mutation import mutators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = HERE / "mutation.toml"
# without the options of pyproject.toml, which ask for several processes
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
PYTEST += ["--import-mode=importlib", "--doctest-modules"]
# `a = None` for every assignment ends in an error at once, whatever is tested
LEFT_OUT = {mutators.operator_assignment}
MEMORY = 16 * 2**30
OPPOSITES = cst.Equal | cst.NotEqual | cst.Is | cst.IsNot | cst.In | cst.NotIn


class Mutant(NamedTuple):
    """One change: what it is known by whatever line it lies on, the line, and the whole text."""

    file: str
    where: str
    original: str
    mutated: str
    line: int
    source: str

    @property
    def key(self) -> tuple[str, ...]:
        """What names it in `mutation.toml` and in results."""
        return self[:4]


# -- the changes ---------------------------------------------------------------------------------


def leave_out(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """Leave out a call whose value is not used."""
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def turn_round(node: cst.If) -> Iterator[cst.CSTNode]:
    """Turn a condition round, unless mutmut does it anyway."""
    test = node.test
    negated = isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not)
    compared = isinstance(test, cst.Comparison) and isinstance(
        test.comparisons[0].operator, OPPOSITES
    )
    if not negated and not compared:
        inner = test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner))


OPERATORS = [
    *(pair for pair in mutators.mutation_operators if pair[1] not in LEFT_OUT),
    (cst.Expr, leave_out),
    (cst.If, turn_round),
]


class Nodes(cst.CSTVisitor):
    """Collects the nodes of a file that can change what it does."""

    def __init__(self) -> None:
        self.found: list[cst.CSTNode] = []
        self._raises = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _says_nothing(node) or (self._raises and isinstance(node, cst.BaseString)):
            # of an f-string the parts that are computed count all the same
            return isinstance(node, cst.FormattedString | cst.ConcatenatedString)
        self._raises += isinstance(node, cst.Raise)
        self.found.append(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._raises -= isinstance(original_node, cst.Raise)


def _says_nothing(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator):
        return True
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.BaseString)
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    if isinstance(node, cst.Assign):
        target = node.targets[0].target
        return isinstance(target, cst.Name) and target.value == "__all__"
    return False


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Yield every change of a file that leaves it readable by Python."""
    module = cst.parse_module(source)
    nodes = Nodes()
    module.visit(nodes)
    scopes = _scopes(source)
    seen = {source}
    for node in nodes.found:
        for changed in _changes(node):
            text = module.deep_replace(node, changed).code
            if text in seen or not _compiles(text):
                continue
            seen.add(text)
            line, original, mutated = _difference(source, text)
            yield Mutant(file, scopes.get(line, ""), original, mutated, line, text)


def _changes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in OPERATORS:
        if not isinstance(node, kind):
            continue
        changes = list(operator(node))
        if operator is mutators.operator_string:  # other cases of it tell no more than the first
            yield from changes[:1]
        elif operator is mutators.operator_arg_removal:  # nor does None in place of an argument
            yield from (call for call in changes if len(call.args) < len(node.args))
        else:
            yield from changes


def _compiles(text: str) -> bool:
    try:
        compile(text, "<mutant>", "exec")
    except SyntaxError:
        return False
    return True


def _difference(before: str, after: str) -> tuple[int, str, str]:
    """First line that differs, and the lines that do, before and after."""
    old, new = before.splitlines(), after.splitlines()
    start = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
        min(len(old), len(new)),
    )
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    parts = (" ".join(" ".join(lines[start : len(lines) - end]).split()) for lines in (old, new))
    return start + 1, *parts


def _scopes(source: str) -> dict[int, str]:
    """Name the function or class of every line."""
    names: dict[int, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}".lstrip(".")
                names.update(dict.fromkeys(range(child.lineno, child.end_lineno + 1), name))
            walk(child, name)

    walk(ast.parse(source), "")
    return names


def _statement(source: str, line: int) -> range:
    """Lines of the statement around a line; of one with a body those above the body."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
            body = getattr(node, "body", None)
            end = max(body[0].lineno, node.lineno + 1) if body else node.end_lineno + 1
            if line < end:
                spans.append(range(node.lineno, end))
    return min(spans, key=len, default=range(line, line + 1))


# -- the tests -----------------------------------------------------------------------------------


class Chosen:
    """A plugin of pytest: some of the tests, the fastest first."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.seconds),
            key=lambda item: self.seconds[item.nodeid],
        )


class Record:
    """A plugin of pytest: which test passes through which line, and how long each takes."""

    def __init__(self, file: Path) -> None:
        self.coverage = coverage.Coverage(include=[str(file)], data_file=None)
        self.file = file
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        start = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - start
        self.coverage.switch_context("")
        return result

    def lines(self) -> dict[int, set[str]]:
        """Return the tests that pass through each line."""
        found = self.coverage.get_data().contexts_by_lineno(str(self.file))
        return {line: set(names) - {""} for line, names in found.items()}


def in_fork(job: Callable[[], Any], seconds: float) -> Any:
    """Return what a job returns in a copy of this process; an exit status if it ends otherwise."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if not child:
            _run(job, answer.fileno())
        ended = _wait(child, seconds)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if ended is None:
            os.waitpid(child, 0)
            return "timeout"
        answer.seek(0)
        content = answer.read()
    return pickle.loads(content) if ended == 0 and content else f"exit {ended}"


def _run(job: Callable[[], Any], answer: int) -> None:
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        silent = os.open(os.environ.get("MUTATION_LOG", os.devnull), os.O_WRONLY | os.O_CREAT)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.write(answer, pickle.dumps(job()))
        code = 0
    finally:
        os._exit(code)


def _wait(child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def first_run(file: Path, tests: list[str]) -> dict[str, Any]:
    """Run all tests of a file, which must pass, and look where they go."""
    record = Record(file)
    record.coverage.start()
    code = pytest.main([*PYTEST, *tests], plugins=[record])
    record.coverage.stop()
    loaded = [name for name in sys.modules if not name.startswith(("dra_scvi", "tests", "__"))]
    return {
        "code": int(code),
        "seconds": record.seconds,
        "lines": record.lines(),
        "loaded": loaded,
    }


def later_run(tests: list[str], seconds: dict[str, float]) -> int:
    """Run some tests and return pytest's exit code."""
    quick = hypothesis.settings(
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        database=None,
        derandomize=True,
    )
    hypothesis.settings.register_profile("mutation", quick)
    hypothesis.settings.load_profile("mutation")
    return int(pytest.main([*PYTEST, *tests], plugins=[Chosen(seconds)]))


# -- one file ------------------------------------------------------------------------------------


def try_file(
    name: str,
    tests: list[str],
    known: dict[tuple[str, ...], str],
    changes: Sequence[Mutant],
) -> Iterator[tuple[Mutant, str, float]]:
    """Yield changes of a file, their outcome, and the seconds that this took."""
    file = Path("dra_scvi", name).resolve()
    source = file.read_text()
    first = in_fork(lambda: first_run(file, tests), 1800)
    if not isinstance(first, dict) or first["code"]:
        raise SystemExit(f"{name}: its tests do not pass unchanged ({first!r:.200}).")
    for module in first["loaded"]:
        with suppress(Exception):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a fork need not look through what was imported
    for mutant in changes:
        outcome, start = known.get(mutant.key, "survived"), time.perf_counter()
        if outcome == "survived":
            lines = _statement(source, mutant.line)
            chosen = set().union(*(first["lines"].get(line, ()) for line in lines))
            # what runs as the file is imported, or compiled, belongs to no test
            seconds = {test: first["seconds"][test] for test in chosen or first["seconds"]}
            write(file, mutant.source)
            job = partial(later_run, tests, seconds)
            outcome = "survived" if in_fork(job, 30 + 5 * sum(seconds.values())) == 0 else "killed"
        yield mutant, outcome, time.perf_counter() - start
    write(file, source)


def choose(name: str, sample: int | None, seed: int) -> tuple[list[Mutant], int]:
    """Return the changes of a file that are tried, and how many there are."""
    found = list(mutants(name, Path("dra_scvi", name).read_text()))
    if sample is None or sample >= len(found):
        return found, len(found)
    places = random.Random(seed).sample(range(len(found)), sample)
    return [found[place] for place in sorted(places)], len(found)


def write(file: Path, text: str) -> None:
    """Write a file of code, and forget what was compiled from it."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()
    file.write_text(text)


def copy_project(folder: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "results", "archive")
    for name in ("dra_scvi", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "tests" / "__init__.py").touch()  # some libraries install a package of this name
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half a second each time
    os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")
    sys.path.insert(0, str(folder))


def _mirror(name: str) -> str:
    """Name the file that tests a file of the package."""
    path = Path(name.lstrip("_"))
    return (Path("tests") / path.with_name(f"test_{path.name.lstrip('_')}")).as_posix()


def read_config(config: dict[str, Any]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Tell which tests each file has, and the changes that mean nothing."""
    tests = {name: [_mirror(name), f"dra_scvi/{name}"] for name in config["files"]}
    tests |= config.get("tests", {})
    equivalent = {
        (row["file"], row["where"], row["original"], row["mutated"]): "equivalent"
        for row in config.get("equivalent", [])
    }
    return tests, equivalent


def main() -> None:
    """Try the files that are asked for, print what was not noticed, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="files of dra_scvi; all of mutation.toml if none")
    parser.add_argument("--output", type=Path, default=ROOT / "mutants.json")
    parser.add_argument("--keep", action="store_true", help="keep what --output says was noticed")
    parser.add_argument("--sample", type=int, help="changes of each file, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    config = tomllib.loads(CONFIG.read_text())
    tests, equivalent = read_config(config)
    output = arguments.output.resolve()
    rows = json.loads(output.read_text()) if arguments.keep and output.exists() else []
    results = {tuple(row["key"]): row for row in rows}
    known = {key: row["outcome"] for key, row in results.items()} | equivalent
    table = []
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder).resolve())
        for name in arguments.files or tests:
            changes, total = choose(name, arguments.sample, arguments.seed)
            found = []
            for mutant, outcome, seconds in try_file(name, tests[name], known, changes):
                row = {"key": mutant.key, "outcome": outcome, "seconds": round(seconds, 1)}
                results[mutant.key] = row
                found.append(row)
                output.write_text(json.dumps(list(results.values()), indent=1))
                if outcome == "survived":
                    print(as_toml(mutant), flush=True)
            table.append(summary(name, found, total))
            print(table[-1], flush=True)
    print("", *table, sep="\n")


def as_toml(mutant: Mutant) -> str:
    """Write a change as `mutation.toml` would list it."""
    names = ("file", "where", "original", "mutated")
    fields = "\n".join(f"{n} = {json.dumps(v)}" for n, v in zip(names, mutant.key, strict=True))
    return f"\n# line {mutant.line}\n[[equivalent]]\n{fields}\nreason = "


def summary(name: str, rows: list[dict[str, Any]], total: int) -> str:
    """Count the outcomes of a file."""
    count = {
        outcome: sum(row["outcome"] == outcome for row in rows)
        for outcome in ("killed", "survived", "equivalent")
    }
    share = count["killed"] / max(1, count["killed"] + count["survived"])
    seconds = sum(row["seconds"] for row in rows)
    return (
        f"{name:32} {len(rows):4} of {total} mutants: {count['killed']} noticed, "
        f"{count['survived']} not, {count['equivalent']} equivalent; "
        f"{share:.1%} of the others noticed; {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
