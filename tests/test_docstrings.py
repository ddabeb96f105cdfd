"""Every public module, class, function and method says what it does."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "common", "data", "engine", "eval", "latte", "scripts", "vae")


def parsed() -> dict[str, ast.Module]:
    """Path to syntax tree, of every source file."""
    files = (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in sorted(files)}


def undocumented(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Public names without a docstring, each with its file.

    A method inherits the docstring of a base class that is defined in `trees`, found by its name;
    not that of a library's class, which says nothing about ours.
    """
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def inherits(kind: ast.ClassDef, method: str) -> bool:
        names = [ast.unparse(base).split("[")[0] for base in kind.bases]
        bases = [classes[name] for name in names if name in classes and name != kind.name]
        return any(
            any(n.name == method and ast.get_docstring(n) for n in functions(base))
            or inherits(base, method)
            for base in bases
        )

    def visit(node: ast.Module | ast.ClassDef, path: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield path
        for child in functions(node):
            inherited = isinstance(node, ast.ClassDef) and inherits(node, child.name)
            if not child.name.startswith("_") and not ast.get_docstring(child) and not inherited:
                yield f"{path}: {child.name}"
        for child in node.body:
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from visit(child, f"{path}: {child.name}")

    for path, tree in trees.items():
        yield from visit(tree, path)


def functions(node: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef)]


def test_what_is_public_has_a_docstring():
    assert list(undocumented(parsed())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1", ["a.py"]),
        ('"""M."""\ndef f(): ...\ndef _g(): ...', ["a.py: f"]),
        ('"""M."""\nclass C:\n    """C."""\n    def f(self): ...', ["a.py: C: f"]),
        ('"""M."""\nclass C:\n    def _f(self): ...', ["a.py: C"]),
        (
            '"""M."""\nclass C(nn.Module):\n    """C."""\n    def forward(self): ...',
            ["a.py: C: forward"],
        ),
        (
            '"""M."""\nclass B:\n    """B."""\n    def f(self):\n        """F."""\n'
            'class C(B):\n    """C."""\n    def f(self): ...\n    def g(self): ...',
            ["a.py: C: g"],
        ),
    ],
)
def test_what_counts_as_undocumented(source, found):
    assert list(undocumented({"a.py": ast.parse(source)})) == found
