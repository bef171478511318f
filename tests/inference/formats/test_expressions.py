"""A bundle's expressions: a short list of constructs is worked out, everything else is refused, and nothing ever runs."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.errors import ConfigError
from mdcli.inference.formats.expressions import Lambda, Word, evaluate

HELD = {"fine": True, "coarse": False, "root": ".", "a::b": [1, 2], "three": 3, "net": object()}
HELD["endless"] = [1.0, [float("inf")]]
HELD["cyclic"] = CYCLIC = [1]
CYCLIC.append(CYCLIC)


def said(text):
    return evaluate(text, "key", HELD.__getitem__)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[1.5, 1.5, 1.5] if @fine else [3.0, 3.0, 3.0]", [1.5, 1.5, 1.5]),
        ("'model.pt' if @coarse else 'model_lowres.pt'", "model_lowres.pt"),
        ("@root + '/models/' + 'model.pt'", "./models/model.pt"),
        ("@a#b + [3]", [1, 2, 3]),
        ("@a::b[1] * 2", 4),
        ("[-57.0] * 3", [-57.0, -57.0, -57.0]),
        ("(@three + 1) // 2 - 7 % 4", -1),
        ("2 ** 10", 1024),
        ("not @fine or @three >= 3", True),
        ("1 < @three <= 3", True),
        ("2 in [1, 2]", True),
        ("None", None),
        ("{'a': 1, 'b': [2]}['b']", [2]),
        ("len(@a::b) + max(1, 5) + min([4, 2]) + abs(-1) + round(2.6)", 13),
        ("sum([[1], [2, 3]], [])", [1, 2, 3]),
        ("sum(@a::b)", 3),
        ("list(range(2, 8, 3))", [2, 5]),
        ("float('1.5') + int(2.9)", 3.5),
        ("round(2.345678, 2)", 2.35),
        ("round(1234, -2)", 1200),
        ("round(2.6, None)", 3),
        ("[[[0] * 9] * 9] * 9", [[[0] * 9] * 9] * 9),
        ("torch.float32", Word("float32")),
        ("np.uint8", Word("uint8")),
    ],
)
def test_what_the_zoo_writes_is_worked_out(text, expected):
    assert said(text) == expected


def test_only_the_branch_that_is_taken_is_asked_for():
    assert evaluate("1 if True else @nothing", "key", {}.__getitem__) == 1
    assert evaluate("False and @nothing", "key", {}.__getitem__) is False


def test_a_function_is_kept_as_its_syntax_tree():
    found = said("lambda x: x > 0")
    assert isinstance(found, Lambda)
    assert (found.argument, type(found.body)) == ("x", ast.Compare)


@pytest.mark.parametrize(
    "text, construct",
    [
        ("__import__('os').system('touch canary')", "a call of __import__('os').system"),
        ("import os", "an import"),
        ("from os import system", "an import"),
        ("os.system('touch canary')", "a call of os.system"),
        ("open('/etc/passwd').read()", "a call of open"),
        ("eval('1')", "a call of eval"),
        ("getattr(@net, 'to')", "a call of getattr"),
        ("@net.to(@three)", "a call of @net.to"),
        ("@net.__class__.__mro__", "the attribute @net.__class__.__mro__"),
        ("().__class__.__bases__[0].__subclasses__()", "a call of"),
        ("torch.cuda", "the attribute torch.cuda"),
        ("torch.load", "the attribute torch.load"),
        ("torch", "the name 'torch'"),
        ("[x for x in [1]]", "a comprehension"),
        ("[[[0 for a in range(9999)] for b in range(9999)] for c in range(9999)]", "a comprehension"),
        ("{x: x for x in [1]}", "a comprehension"),
        ("(x for x in [1])", "a comprehension"),
        ("f'{1}'", "a formatted text"),
        ("(y := 1)", "an assignment"),
        ("[*[1], 2]", "a starred value"),
        ("{1, 2}", "a set"),
        ("[1, 2][0:1]", "a slice"),
        ("1j", "a complex"),
        ("b'a'", "a bytes"),
        ("...", "a ellipsis"),
        ("1 @ 2", "what is no Python expression"),
        ("~1", "the operator Invert"),
        ("1 << 999999", "the operator LShift"),
        ("9 ** 9 ** 9", "a power that is too large"),
        ("'a' * 10 ** 9", "a value of 1000000000 items"),
        ("[0] * 10 ** 9", "a value of 1000000000 items"),
        ("range(10 ** 30)", "a range of more than 10000 numbers"),
        ("'%0999999999d' % 1", "Mod of what are no numbers"),
        ("'{:>999999999}'.format(1)", "a call of"),
        ("int('9' * 9999)", "what can't be computed (ValueError)"),
        ("1 / 0", "what can't be computed (ZeroDivisionError)"),
        ("[1][5]", "what can't be computed (IndexError)"),
        ("lambda: 1", "a function that does not take one value"),
        ("lambda x, y: 1", "a function that does not take one value"),
        ("lambda x=open('canary', 'w'): 1", "a function that does not take one value"),
        ("'@three'", "a reference inside a text"),
        ("@", "'@' without a name"),
        ("__reference_0", "the name __reference_"),
        ("[[1]] == [[1]]", "a comparison of what are no plain values"),
        ("str(@net)", "a call of 'str' with what are no plain values"),
        ("sum([@net])", "the sum of what are no numbers"),
        ("round(10**70, -10**7)", "rounding to more than 20 digits"),
        ("round(1.5, 21)", "rounding to more than 20 digits"),
        ("round(1.5, 1.5)", "rounding of what is no number, or to what is no whole number"),
        ("round('1')", "rounding of what is no number, or to what is no whole number"),
        ("[[[[[[1]*9999]*9999]*9999]*9999]*9999]*3", "items"),
        ("[[[1] * 99] * 99] * 2", "a value of 19802 items"),
        ("[[[1] * 99] * 99, [[1] * 99] * 2]", "a value of more than 10000 items"),
        ("[[0] * 5000] + [[0] * 5000]", "a value of more than 10000 items"),
        ("sum([[[0] * 5000]], [[0] * 5000])", "a value of more than 10000 items"),
        ("{'a': [0] * 5000, 'b': [0] * 5000}", "a value of more than 10000 items"),
        ("(-1) ** 0.5", "a complex"),
        ("float('nan')", "a number that is not finite"),
        ("float('-inf')", "a number that is not finite"),
        ("1e999", "a number that is not finite"),
        ("-1e308 * 10", "a number that is not finite"),
        ("sum([1e308, 1e308])", "a number that is not finite"),
        ("[1, [float('nan')]]", "a number that is not finite"),
        ("@endless", "a number that is not finite"),
        ("@cyclic", "a value of more than 10000 items"),
        ("max([1], key=len)", "a call of 'max' with named or starred values"),
        ("", "what is no Python expression"),
        ("1 +", "what is no Python expression"),
        ("'\0'", "what is no"),
        ("(" * 2000, "what is no Python expression"),
        ("-" * 3000 + "1", "what is nested too deeply"),
        ("1" + " + 1" * 3000, "it has 12001 characters, over 4000"),
    ],
)
def test_everything_else_is_refused_by_name(text, construct, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        said(text)
    assert caught.value.code == "refused-expression"
    assert construct in caught.value.message or "nested too deeply" in caught.value.message
    assert caught.value.message.startswith("key: ")
    assert list(tmp_path.iterdir()) == []


@given(st.text(alphabet="()[]{}:,.@#'\"+-*/%<>=!~ \n0123456789aexyz_lambdifonrt", max_size=60))
def test_any_text_is_worked_out_or_refused(text):
    try:
        evaluate(text, "key", lambda reference: 1)
    except ConfigError as error:
        assert error.code == "refused-expression"


@given(
    st.recursive(
        st.integers(-9, 9) | st.floats(-9, 9) | st.booleans() | st.none() | st.text(max_size=3), st.lists, max_leaves=9
    )
)
def test_a_literal_means_what_python_means_by_it(value):
    text = repr(value)
    if "@" not in text:
        assert said(text) == value
