"""Where the package may catch errors of any class, unless it raises again: where an image is replaced or left out, and
where a tracker is given up."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "greenjax"
ANY = {"Exception", "BaseException"}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def broad(kind: ast.expr | None) -> bool:
    """Of `except:`, `except Exception`, `except (A, Exception)`, `suppress(builtins.Exception)`."""
    if isinstance(kind, ast.Tuple):
        return any(map(broad, kind.elts))
    return kind is None or getattr(kind, "id", getattr(kind, "attr", None)) in ANY


def own(statements: list) -> Iterator[ast.AST]:
    """The nodes of some statements, but for those of functions that they define."""
    for statement in statements:
        if not isinstance(statement, SCOPES):
            yield statement
            yield from own(list(ast.iter_child_nodes(statement)))


def silent(tree: ast.AST) -> list[int]:
    """Lines of a module that catch anything and do not raise, a plain `raise` or another error."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and broad(node.type):
            if not any(isinstance(inner, ast.Raise) for inner in own(node.body)):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) == "suppress":
            found += [node.lineno] * any(map(broad, node.args))
    return found


def test_the_walk_finds_every_form():
    text = """
try: pass
except: pass
try: pass
except (ValueError, BaseException): pass
try: pass
except Exception: raise
try: pass
except builtins.Exception as e:
    def later(): raise e
try: pass
except ValueError: pass
with contextlib.suppress(OSError, Exception): pass
"""
    assert silent(ast.parse(text)) == [3, 5, 9, 13]


ALLOWED = {"data/stream.py": 1, "tasks/inference/images.py": 1, "training/trackers.py": 1}


def test_any_error_is_caught_only_where_it_is_said():
    found = {
        path.relative_to(PACKAGE).as_posix(): silent(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")
    }
    assert {name: len(lines) for name, lines in found.items() if lines} == ALLOWED
