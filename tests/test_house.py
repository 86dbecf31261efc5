"""Every public function and class says what it takes, what it gives and what it is for."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "srum_jax"
FILES = sorted(ROOT.rglob("*.py"))


def named(body):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [n for n in body if isinstance(n, kinds) and not n.name.startswith("_")]


def public(body):
    """(name, node, whether it needs words of its own) of public functions, classes and methods. The
    only method of a class is described by the class; those of a class with a base, by the base."""
    for node in named(body):
        yield node.name, node, True
        if isinstance(node, ast.ClassDef):
            inside = named(node.body)
            inherits = any(ast.unparse(base) != "Protocol" for base in node.bases)
            described = not inherits and len(inside) > 1
            yield from ((f"{node.name}.{one.name}", one, described) for one in inside)


def lacking(name, node, described):
    """What a public function or class does not say of itself."""
    if described and not ast.get_docstring(node):
        yield "a docstring"
    if isinstance(node, ast.ClassDef):
        return
    decorators = {ast.unparse(d) for d in node.decorator_list}
    a = node.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    if "." in name and "staticmethod" not in decorators:
        arguments = arguments[1:]  # self or cls
    yield from (f"a type of {x.arg}" for x in arguments if x.annotation is None)
    if node.returns is None:
        yield "a type of what it returns"


def faults(tree):
    return [f"{one[0]} lacks {what}" for one in public(tree.body) for what in lacking(*one)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_typed_and_described(path):
    assert faults(ast.parse(path.read_text())) == []


def test_the_rule_itself_catches():
    source = '''
class A:
    """A class."""

    def f(self, x, *, y: int) -> int: ...

    @staticmethod
    def g(x) -> int:
        """Described."""

    def _own(self, x): ...

class B:
    """A class of one method."""

    def f(self) -> None: ...

class C(A):
    """A class with a base, which describes both."""

    def f(self, x: int, *, y: int) -> int: ...

    def g(self) -> int: ...

def h(x: int, *rest):
    """Described."""
'''
    found = ["A.f lacks a docstring", "A.f lacks a type of x", "A.g lacks a type of x"]
    found += ["h lacks a type of rest", "h lacks a type of what it returns"]
    assert faults(ast.parse(source)) == found
