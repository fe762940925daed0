"""Methods as a command line writes them: read back what they print, and nothing is ever evaluated."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invfast.methods import CLASSES, METHODS, Auto, FixedPoint, ForwardStart, NullText, ReNoise, spelling
from invfast.methods.spelling import parse, split


@pytest.mark.parametrize("name", METHODS)
def test_names_and_what_methods_print(name):
    method = METHODS[name]
    assert parse(name) == method
    assert parse(f" {name}() ") == method
    assert parse(repr(method)) == method
    assert parse(f"forward_start(3, {name})") == ForwardStart(3, method)


def test_classes():
    for name, cls in CLASSES.items():
        assert parse(name) == cls()


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("auto(budget=1.2)", Auto(budget=1.2)),
        ("auto(budget=None)", Auto()),
        ("auto( 80 , iterations = 5 )", Auto(80, iterations=5)),
        ("averaged(5)", FixedPoint(5, mixing="averaged")),
        ("fixed_point(5, anderson, linear, 1e-3)", FixedPoint(5, "anderson", "linear", 1e-3)),
        ("fixed_point(mixing='anderson')", FixedPoint(3, "anderson")),
        ("forward_start(2, anderson)", ForwardStart(2, METHODS["anderson"])),
        ("forward_start(2, auto(60), seed=7)", ForwardStart(2, Auto(60), seed=7)),
        ("forward_start(seed=-7)", ForwardStart(2, seed=-7)),
        ("null_text(3, method=fixed_point(2))", NullText(3, method=FixedPoint(2))),
        ("renoise(early_window=[0, 9])", ReNoise(early_window=(0, 9))),
    ],
)
def test_settings(text, method):
    assert repr(parse(text)) == repr(method)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")  # Python's own hints
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("easy-inv", "unknown method 'easy-inv'; expected one of 'ddim'"),
        ("", "unknown method ''"),
        ("easyin(1)", "unknown method 'easyin'"),
        ("auto(budgt=1)", "auto has no setting 'budgt'; expected target, budget, iterations"),
        ("ddim(1)", "ddim asked must be str, got '1'"),
        ("euler(1)", r"euler has 0 settings \(\), got 1"),
        ("euler(steps=1)", "euler has no setting 'steps'; expected none"),
        ("auto(1, 2, 3, 4)", "auto has 3 settings"),
        ("auto(70, target=80)", "is given 'target' twice"),
        ("auto(target=70, target=80)", "is given 'target' twice"),
        ("auto(9)", r"Auto target must lie in \[30, 140\]"),
        ("auto('70')", "auto target must be float, got \"'70'\""),
        ("auto(1e999)", "auto target must be float"),
        ("auto(inf)", "auto target must be float, got 'inf'"),
        ("auto(3j)", "auto target must be float"),
        ("auto(-(70))", "target must lie"),
        ("auto(-True)", "auto target must be float"),
        ("auto(70 + 1)", "auto target must be float, got '70 \\+ 1'"),
        (f"auto({'9' * 400})", "auto target must be float"),
        ("fixed_point(2.0)", "fixed_point iterations must be int, got '2.0'"),
        ("fixed_point(True)", "fixed_point iterations must be int, got 'True'"),
        ("fixed_point(mixing=broyden)", "unknown FixedPoint mixing 'broyden'"),
        ("forward_start(2, 3)", "forward_start method: expected a method's name, got '3'"),
        ("forward_start(2, 'ddim')", "expected a method's name"),
        ("forward_start(2, auto(budgt=1))", "forward_start method: auto has no setting 'budgt'"),
        ("auto(*[70])", "auto target must be float"),
        ("auto(**{'target': 70})", "auto has no setting '\\*\\*'"),
        ("auto(__import__('os'))", "auto target must be float"),
        ("auto(x := 70)", "auto target must be float"),
        ("auto(f'{1}')", "auto target must be float"),
        ("auto.__class__()", "expected a method's name, got 'auto.__class__'"),
        ("auto()()", "expected a method's name"),
        ("(auto)(70).x", "expected a method's name"),
        ("[auto(70)]", "expected a method's name"),
        ("auto(70", "was never closed.*write a name, or a name with settings"),
        ("auto(70))", "unmatched"),
        ("auto(70) ddim", "cannot be read"),
        ("auto(\0)", "cannot be read"),
        ("auto(1is 2)", "auto target must be float"),
        ("auto('\\d')", "auto target must be float"),
        ("(" * 400, "cannot be read"),
        (f"auto({'-' * 9000}1)", "it has 9007 characters, at most 500 are read"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_nothing_is_evaluated(capfd):
    for text in ("auto(exit())", "auto([].append(1))", "auto(print(1) or 70)", "auto((lambda: print(1))())"):
        with pytest.raises(ValueError, match="must be"):
            parse(text)
    assert capfd.readouterr().out == ""
    tree = ast.parse(Path(spelling.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names.isdisjoint({"eval", "exec", "compile", "__import__"})


@given(st.text("auto(),=-'\"[]{}*.:\\ 0123\n", max_size=40))
def test_any_text_is_a_method_or_a_named_error(text):
    try:
        parse(text)
    except ValueError as error:
        assert "method" in str(error) or "must" in str(error)  # noqa: PT017


def test_split():
    assert split("auto(budget=1.2), ddim") == ["auto(budget=1.2)", "ddim"]
    assert split("forward_start(2, auto(60)),edict( 0.9 )") == ["forward_start(2, auto(60))", "edict( 0.9 )"]
    assert split("ddim,") == ["ddim", ""]
    assert split("") == [""]
    assert split("fixed_point(3, 'a,b)'), ddim") == ["fixed_point(3, 'a,b)')", "ddim"]
    assert split("a), b") == ["a)", "b"]
    assert split("renoise(early_window=(0, 5)),ddim") == ["renoise(early_window=(0, 5))", "ddim"]
    assert split("renoise(early_window=[0, 5]),ddim") == ["renoise(early_window=[0, 5])", "ddim"]
