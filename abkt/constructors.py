"""Dataclasses with their constructors written out, as source text for mypyc.

A dataclass makes its `__init__` when the module is imported, and mypyc leaves that to the interpreter, which then takes most of the time of
a small object. So the build compiles these sources with the same constructors as code. A class is left as it is if it says `init=False`, if
a field of its constructor has a `default_factory`, or if it adds fields to those of a base class. A class that adds none uses the
constructor of its base. Frozen classes are not frozen in the build, because their own constructor could then not set them; they keep their
hash.

A class whose fields hold numbers, texts and other such classes alone cannot be part of a reference cycle. It is marked as `acyclic`, so the
garbage collector neither counts nor visits its objects.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

INDENT = "    "
PLAIN = {"int", "float", "str", "bool", "bytes", "tuple", "list", "None"}


def written_out(sources: Mapping[str, str]) -> dict[str, str]:
    """The sources, by any key, with constructors. Class names must be distinct among them. Line numbers change."""
    trees = {key: ast.parse(source) for key, source in sources.items()}
    kinds = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef) and _decorator(node)}
    left = _left(kinds)
    plain = _plain(kinds, PLAIN | {name for tree in trees.values() for name in _literals(tree)})
    changed = {}
    for key, source in sources.items():
        lines = source.splitlines()
        mine = [node for node in trees[key].body if isinstance(node, ast.ClassDef) and node.name in kinds]
        for node in reversed(mine):
            if node.name not in left:
                _write_out(node, _base(node, kinds), kinds, lines, source)
            if node.name in plain:
                lines.insert(node.decorator_list[0].lineno - 1, "@mypyc_attr(acyclic=True)")
        if mine:
            future = next(i for i, line in enumerate(lines) if line.startswith("from __future__"))
            lines[future + 1 : future + 1] = ["import math", "from mypy_extensions import mypyc_attr"]  # inf, in fields of a base class
        changed[key] = "\n".join(lines) + "\n"
    return changed


def _plain(kinds: Mapping[str, ast.ClassDef], known: set[str]) -> set[str]:
    """The classes that can be part of no reference cycle: they inherit from nothing, nothing inherits from them, and their fields are of
    `known` types or of each other's."""
    plain: set[str] = set()
    bases = {ast.unparse(base) for node in kinds.values() for base in node.bases}
    while True:
        more = {
            name
            for name, node in kinds.items()
            if name not in plain | bases and not node.bases and len(node.decorator_list) == 1 and _names(_fields(node)) <= known | plain
        }
        if not more:
            return plain
        plain |= more


def _names(fields: list[ast.AnnAssign]) -> set[str]:
    parts = [part for field in fields for part in ast.walk(field.annotation)]
    return {ast.unparse(part) for part in parts if isinstance(part, ast.Name | ast.Attribute | ast.Call)}


def _literals(tree: ast.Module) -> set[str]:
    """Names of the module that stand for a Literal."""
    assigned = [(node.targets[0], node.value) for node in tree.body if isinstance(node, ast.Assign)]
    return {
        target.id
        for target, value in assigned
        if isinstance(target, ast.Name) and isinstance(value, ast.Subscript) and ast.unparse(value.value) == "Literal"
    }


def _left(kinds: Mapping[str, ast.ClassDef]) -> set[str]:
    """The classes whose constructors are left to the interpreter: see the module's docstring. A base and its classes go together."""
    bases = {name: [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in kinds] for name, node in kinds.items()}
    left = set()
    for name, node in kinds.items():
        fields = _fields(node)
        made = any(_argument(field, "default_factory") and _of_init(field) for field in fields)
        checks = _has(node, "__post_init__") and not any(_has(kinds[base], "__post_init__") for base in bases[name])
        if _settings(node).get("init") == "False" or made or (bases[name] and checks and not fields):
            left.add(name)
    while more := {other for name in left for other in bases[name]} | {name for name in kinds if left.intersection(bases[name])}:
        if more <= left:
            break
        left |= more
    return left


def _write_out(node: ast.ClassDef, base: ast.ClassDef | None, kinds: Mapping[str, ast.ClassDef], lines: list[str], source: str) -> None:
    """Change the lines of one class. base: the dataclass that it inherits from."""
    fields, settings, decorator = _fields(node), _settings(node), _decorator(node)
    assert decorator is not None
    if fields:
        _insert(node, fields, lines, source, _inherited(base, kinds), base.name if base is not None else "")
    settings["init"] = "False"
    if settings.pop("frozen", "") == "True":
        settings["unsafe_hash"] = "True"
    line, end = decorator.lineno - 1, decorator.end_col_offset
    made = f"dataclass({', '.join(f'{name}={value}' for name, value in settings.items())})"
    lines[line] = lines[line][: decorator.col_offset] + made + lines[line][end:]


def _base(node: ast.ClassDef, kinds: Mapping[str, ast.ClassDef]) -> ast.ClassDef | None:
    return next((kinds[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in kinds), None)


def _inherited(base: ast.ClassDef | None, kinds: Mapping[str, ast.ClassDef]) -> list[ast.AnnAssign]:
    """The fields of a base class that its constructor takes, those of its own bases first."""
    if base is None:
        return []
    return _inherited(_base(base, kinds), kinds) + [field for field in _fields(base) if _of_init(field)]


def _insert(
    node: ast.ClassDef, fields: list[ast.AnnAssign], lines: list[str], source: str, inherited: list[ast.AnnAssign], base: str
) -> None:
    """Insert the constructor after the fields. What the base class's fields are annotated with may be unknown here."""
    parameters = [_parameter(field, "object") for field in inherited]
    body = []
    for field in fields:
        name, default = _name(field), _default(field)
        if _of_init(field):
            parameters.append(_parameter(field, ast.unparse(field.annotation)))
            body.append(f"self.{name} = {name}")
        elif factory := _argument(field, "default_factory"):
            body.append(f"self.{name} = {ast.unparse(factory)}()")
        elif default:
            body.append(f"self.{name} = {default}")
    if base:
        body.append(f"{base}.__init__(self, {', '.join(map(_name, inherited))})  # type: ignore[arg-type]")
    elif _has(node, "__post_init__"):
        body.append("self.__post_init__()")
    text = [f"{INDENT}def __init__(self, {', '.join(parameters)}) -> None:", *(f"{INDENT}{INDENT}{line}" for line in body)]
    after = fields[-1].end_lineno
    assert after is not None
    lines[after:after] = ["", *text, ""]


def _name(field: ast.AnnAssign) -> str:
    assert isinstance(field.target, ast.Name)
    return field.target.id


def _parameter(field: ast.AnnAssign, annotation: str) -> str:
    default = _default(field)
    return f"{_name(field)}: {annotation}{f' = {default}' if default else ''}"


def _decorator(node: ast.ClassDef) -> ast.expr | None:
    """The class's `@dataclass` or `@dataclass(…)`."""
    for decorator in node.decorator_list:
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(name, ast.Name) and name.id == "dataclass":
            return decorator
    return None


def _settings(node: ast.ClassDef) -> dict[str, str]:
    """The arguments of that decorator, as source text."""
    decorator = _decorator(node)
    return {str(word.arg): ast.unparse(word.value) for word in decorator.keywords} if isinstance(decorator, ast.Call) else {}


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [one for one in node.body if isinstance(one, ast.AnnAssign) and not ast.unparse(one.annotation).startswith("ClassVar")]


def _argument(field: ast.AnnAssign, argument: str) -> ast.expr | None:
    """The argument of this name, if the field's value is a `field(…)` that has it."""
    call = field.value
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "field"):
        return None
    return next((word.value for word in call.keywords if word.arg == argument), None)


def _of_init(field: ast.AnnAssign) -> bool:
    """Whether the constructor has a parameter for the field."""
    given = _argument(field, "init")
    return not (isinstance(given, ast.Constant) and given.value is False)


def _default(field: ast.AnnAssign) -> str:
    """The source of the field's default value, "" if it has none."""
    value = field.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        value = _argument(field, "default")
    return "" if value is None else ast.unparse(value)


def _has(node: ast.ClassDef, method: str) -> bool:
    return any(isinstance(one, ast.FunctionDef) and one.name == method for one in node.body)
