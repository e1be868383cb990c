"""Tests that compile or simulate networks run in a child: they start threads of autograd, after which none can fork."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def starts_threads(call: ast.AST) -> bool:
    """Return whether a node is a call of x.compile(), not of re.compile(), or of FakeTensorMode()."""
    if not isinstance(call, ast.Call):
        return False
    if isinstance(call.func, ast.Attribute) and call.func.attr == "compile":
        return not (isinstance(call.func.value, ast.Name) and call.func.value.id == "re")
    return isinstance(call.func, ast.Name) and call.func.id == "FakeTensorMode"


def find_tests(text: str) -> dict[str, bool]:
    """Return the tests that start threads: name → whether they run in a child."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return {
        test.name: any(isinstance(mark, ast.Name) and mark.id == "in_child" for mark in test.decorator_list)
        for test in functions
        if test.name.startswith("test_") and any(map(starts_threads, ast.walk(test)))
    }


def test_what_starts_threads_runs_in_a_child():
    found = {
        f"{file.relative_to(TESTS)}::{name}": in_child
        for file in TESTS.rglob("test_*.py")
        for name, in_child in find_tests(file.read_text(encoding="utf-8")).items()
    }
    assert len(found) > 3
    assert all(found.values()), [name for name, in_child in found.items() if not in_child]


def test_the_reader_of_tests_sees_what_it_should():
    body = "def test_a():\n    x.unet.compile()\n@in_child\ndef test_b():\n    FakeTensorMode()\n"
    body += "def test_c():\n    re.compile('x')\n"
    assert find_tests(body) == {"test_a": False, "test_b": True}
