"""The calculator that the model calls between `<|python_start|>` and `<|python_end|>`.

It does arithmetic (`+ - * / //`, parentheses, decimals) and counts a substring (`'strawberry'.count('r')`), as
nanochat's engine does. Expressions come from a language model, and a user may control what it writes. So Python never
evaluates them: the syntax tree is walked, and a node that is not on a short list is refused. Length and magnitude are
limited, and there are no powers. It needs no signal or timer, so it works in any thread.

The result is what Python prints: `20/2` is `10.0`. Training data must contain the outputs of this function. Otherwise
the model learns outputs that it never gets (nanochat pull request 786).
"""

import ast
import math
import operator
import re

MAX_LENGTH = 512  # characters
MAX_MAGNITUDE = 10**64  # of every intermediate value

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
    """The expression is not one that the calculator computes."""


def calculate(expression: str) -> str | None:
    """Returns the result as Python prints it, or None if the expression is refused or has no value.

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
    """Parses an expression; raises SyntaxError if it is none."""
    return ast.parse(expression, mode="eval").body


def _number(node: ast.expr) -> int | float:
    """Returns the value of an arithmetic expression. Every intermediate value is limited to MAX_MAGNITUDE."""
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
    """Returns the value of `text.count(substring)`; lower() or upper() may be applied to the text first."""
    receiver, arguments = _method_call(node, ("count",))
    if len(arguments) != 1:
        raise _Refused
    return _string(receiver).count(_string(arguments[0]))


def _string(node: ast.expr) -> str:
    """Returns a string literal, after its lower() or upper() calls."""
    if isinstance(node, ast.Constant) and type(node.value) is str:
        return node.value
    receiver, arguments = _method_call(node, ("lower", "upper"))
    if arguments:
        raise _Refused
    text = _string(receiver)
    return text.lower() if node.func.attr == "lower" else text.upper()


def _method_call(node: ast.expr, methods: tuple[str, ...]) -> tuple[ast.expr, list[ast.expr]]:
    """Splits a call of one of these methods into receiver and arguments; refuses all else."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods):
        raise _Refused
    if node.keywords:
        raise _Refused
    return node.func.value, node.args
