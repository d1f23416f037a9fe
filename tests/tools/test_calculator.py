"""The calculator: right answers, no answer to anything else, and no way to run code."""

import threading

import pytest

from nanochat_hf.tools.calculator import MAX_LENGTH, calculate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*3", "36"),
        ("20/2", "10.0"),  # as Python prints it, never tidied to 10
        ("7//2", "3"),
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("-5 - -3", "-2"),
        (".5+1.25", "1.75"),
        ("0.1+0.2", "0.30000000000000004"),
        (" 1+1 ", "2"),
        ("1,200*3", "3600"),
        ("1,234,567+1", "1234568"),
        ("'strawberry'.count('r')", "3"),
        ('"a,b,c".count(",")', "2"),  # a comma in a string is text
        ("'Anna'.lower().count('a')", "2"),
        ("'größe ✨'.count('✨')", "1"),
        ("('abab').count('ab')", "2"),
    ],
)
def test_answers(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "1/0",
        "2**10",
        "9" * 60 + "*" + "9" * 60,
        "1e9",
        "1_000",
        "5 % 3",
        "1 2",
        "1, 2",
        "(1,)",
        "2(3)",
        "((1)",
        "1\n+1",
        "True+1",
        "x+1",
        "'abc'",
        "'a'*100",
        "'a'.join('b')",
        "'a'.count('a', 0)",
        "'a'.count(sub='a')",
        "'a'.count(1)",
        "'%s'.__class__.count('a')",
        "f'{1+1}'.count('2')",
        "b'a'.count(b'a')",
        "'\\x61'.count('a')",
        "'a'.count('a'",
        "__import__('os').system('true').count('a')",
        "().__class__.__bases__[0].__subclasses__().count('a')",
        "[x for x in 'ab'].count('a')",
        "(lambda: 1)().count('a')",
        "1\x00+1",
        "\ud800.count('a')",
    ],
)
def test_refuses(expression):
    assert calculate(expression) is None


@pytest.mark.parametrize("depth", [100, 250, MAX_LENGTH - 1, 100_000])
@pytest.mark.parametrize("shape", ["({})", "-{}"])
def test_deep_nesting_neither_crashes_nor_runs_away(depth, shape):
    left, right = shape.split("{}")
    result = calculate(left * depth + "1" + right * depth)
    assert result in (None, "1", "-1")


def test_works_outside_the_main_thread():
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(calculate(f"{n}*2"))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["0", "2", "4", "6"]
