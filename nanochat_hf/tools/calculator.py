"""The calculator that the model calls between `<|python_start|>` and `<|python_end|>`.

It knows arithmetic (`+ - * / //`, brackets, decimals) and counting a substring (`'strawberry'.count('r')`), the two
things that nanochat's engine answers. Expressions come from a language model that a stranger may be steering, so
nothing is ever evaluated by Python: the syntax tree is walked and every node that is not on the short list is refused.
Everything is bounded (length, magnitude, no powers), needs no signal or timer, and so works in any thread.

The text is what Python prints: `20/2` is `10.0`. Training data must show the tool's output through this very function,
or the model learns outputs that it will never meet (nanochat pull request 786).
"""

import ast
import math
import operator
import re

MAX_LENGTH = 512  # characters
MAX_MAGNITUDE = 10**64

_ARITHMETIC = re.compile(r"[0-9+\-*/.,() ]+")
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _Refused(Exception):
    pass


def calculate(expression: str) -> str | None:
    """Returns the result as Python prints it, or None where the expression is refused or has no value.

    >>> calculate("1,200 * 3"), calculate("20 / 2"), calculate("'banana'.count('a')"), calculate("2 ** 3")
    ('3600', '10.0', '3', None)
    """
    expression = expression.strip(" ")
    if not expression or len(expression) > MAX_LENGTH or "\\" in expression:
        return None
    try:
        if _ARITHMETIC.fullmatch(expression):
            return str(_number(_parse(_THOUSANDS_COMMA.sub("", expression))))
        return str(_count(_parse(expression)))
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _parse(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _number(node: ast.expr) -> int | float:
    """The value of an arithmetic expression; every intermediate value is bounded."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        value = _UNARY[type(node.op)](_number(node.operand))
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_number(node.left), _number(node.right))
    else:
        raise _Refused
    if not math.isfinite(value) or abs(value) > MAX_MAGNITUDE:
        raise _Refused
    return value


def _count(node: ast.expr) -> int:
    """The value of `text.count(substring)`, where text may first be put through lower() or upper()."""
    receiver, arguments = _method_call(node, ("count",))
    if len(arguments) != 1:
        raise _Refused
    return _string(receiver).count(_string(arguments[0]))


def _string(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and type(node.value) is str:
        return node.value
    receiver, arguments = _method_call(node, ("lower", "upper"))
    if arguments:
        raise _Refused
    text = _string(receiver)
    return text.lower() if node.func.attr == "lower" else text.upper()


def _method_call(node: ast.expr, methods: tuple[str, ...]) -> tuple[ast.expr, list[ast.expr]]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods):
        raise _Refused
    if node.keywords:
        raise _Refused
    return node.func.value, node.args
