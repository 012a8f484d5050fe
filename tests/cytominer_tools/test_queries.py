import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from cytominer_tools.queries import select

TABLE = pd.DataFrame({"A": ["x", "y", None], "B": [1.0, 2.0, None], "a b": [1, 2, 3]}, index=[7, 8, 9])


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("A == 'x'", "100"),
        ("A != 'x'", "011"),
        ("A in ['x', 'y']", "110"),
        ("A not in ['x']", "011"),
        ("A == ['x']", "100"),
        ("`a b` > 1", "011"),
        ("`a b`.isin([1, 3])", "101"),
        ("1 < `a b` < 3", "010"),
        ("B == 1 & A == 'x'", "100"),
        ("B == 1 | `a b` == 2", "110"),
        ("A == 'x' or (`a b` > 1 and not `a b` > 2)", "110"),
        ("~(A == 'x')", "011"),
        ("-B < -1", "010"),
        ("`a b` % 2 == 1", "101"),
        ("A.isna() and `a b` == 3", "001"),
        ("B.between(1, 2, inclusive='right')", "010"),
        ("A.str.startswith('x')", "100"),
        ("A.str.contains('X', case=False)", "100"),
        ("A.str.upper() == 'Y'", "010"),
        ("A == 'x' # a comment", "100"),
        ("A == 'x'\n  and `a b` == 1\n", "100"),
        (' A == "x"', "100"),
        ("A == '@' or A == '#' or A == '`' or A == '&' or `a b` == 2", "010"),
        ("BACKTICKS_0 == 1 and `a b` == 2", ""),
    ],
)
def test_pandas_queries_mean_what_they_mean_in_pandas(query, chosen):
    if not chosen:
        with pytest.raises(InputError, match="BACKTICKS_0"):
            select(TABLE.rename(columns={"B": "C"}), query.replace("`a b` == 2", "C == 2"))
        return
    found = select(TABLE, query)
    assert "".join(map(str, found.astype(int))) == chosen
    assert found.index.tolist() == [7, 8, 9]
    assert found.dtype == bool
    if not query.lstrip().endswith("\n") and "\n" not in query:
        expected = TABLE.query(query, engine="python").index
        assert found[found].index.equals(expected)


def test_quotes_inside_text_are_text():
    table = pd.DataFrame({"A": ["it's", 'a"b', "a`b", "a&b", "a\\b", "a.to_csv('x')"]})
    for i, query in enumerate(
        ["A == 'it\\'s'", "A == 'a\"b'", "A == 'a`b'", "A == 'a&b'", r"A == 'a\\b'", "A == \"a.to_csv('x')\""]
    ):
        assert select(table, query).to_numpy().nonzero()[0].tolist() == [i], query


@given(st.text())
def test_a_quoted_value_picks_exactly_its_rows(word):
    assert select(pd.DataFrame({"A": [word, word + "x"]}), f"A == {word!r}").tolist() == [True, False]


@pytest.mark.parametrize("kind", ["object", "str", "string"])
def test_a_missing_answer_is_no(kind):
    table = TABLE.assign(A=TABLE["A"].astype(kind))
    assert select(table, "A.str.startswith('x')").tolist() == [True, False, False]
    assert select(table.assign(B=table["B"].astype("Float64")), "B > 1").tolist() == [False, True, False]
    assert select(table.iloc[:0], "A.str.startswith('x')").tolist() == []


# --- a query from a stranger's study is data
@pytest.mark.parametrize("method", ["to_csv", "to_pickle", "to_json"])
@pytest.mark.parametrize(
    "query",
    [
        "A.METHOD(PATH)",
        "A . METHOD (PATH)",
        "A\n.\nMETHOD\n(PATH)",
        "A.\\\nMETHOD(PATH)",
        "(A.METHOD)(PATH)",
        "A.\uff4eETHOD(PATH)",  # replaced below: a full-width letter, the same identifier to Python
        "(A # '\n .METHOD(PATH) # '\n)",
        "'''a'b''' == A.METHOD(PATH)'",
        "'''a'b''' == A.METHOD(PATH) #'",
        '"\'" == A.METHOD(PATH) or "\'" == A',
        "'\\' == A.METHOD(PATH) or '\\'",
        "'a\\\\' == A.METHOD(PATH) or 'b'",
        "`a b'` == 1 or A.METHOD(PATH) == '`'",
        "f'{A.METHOD(PATH)}' == 'x'",
        "A == rb'' or A.METHOD(PATH)",
        "A.isin(A.METHOD(PATH))",
        "A.isin(values=A.METHOD(PATH))",
        "A.str.METHOD(PATH)",
        "[A.METHOD(PATH)] == A",
        "[A][0].METHOD(PATH)",
        "[x.METHOD(PATH) for x in A]",
        "(lambda: A.METHOD(PATH))()",
        "(C := A.METHOD(PATH)) == 1",
        "C = A.METHOD(PATH)",
        "A == 1; A.METHOD(PATH)",
        "A if A.METHOD(PATH) else A",
        "{A.METHOD(PATH): 1}",
        "@A.METHOD(PATH)",
    ],
)
def test_no_query_writes_a_file(query, method, tmp_path):
    path = tmp_path / "stolen"
    query = (
        query.replace("\uff4eETHOD", f"\uff54{method[1:]}").replace("METHOD", method).replace("PATH", repr(str(path)))
    )
    with pytest.raises(InputError, match="query "):
        select(TABLE, query)
    assert not path.exists()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("@pd.DataFrame", "@ is not allowed"),
        ("A.__class__ == 1", "__class__ is not allowed"),
        ("A.str.__class__ == 1", "__class__ is not allowed"),
        ("A.values.tofile('x')", r"\.tofile\(\) is not allowed"),
        ("A.values == 1", r"\.values is not allowed"),
        ("A.isin", r"\.isin is not allowed"),
        ("A.apply(print)", r"\.apply\(\) is not allowed"),
        ("__import__('os').getcwd()", "is not allowed"),
        ("print(A)", r"the function print\(\) is not allowed"),
        ("(Timestamp)('2020')", r"the function Timestamp\(\) is not allowed"),
        ("A['x'] == 1", "Subscript is not allowed"),
        ("B ** 999999999 > 1", "Pow is not allowed"),
        ("'x' * 999999999 == A", "text can be compared"),
        ("'%0999999999d' % `a b` == A", "text can be compared"),
        ("A == b'x'", "not a number or text"),
        ("A.isin(*['x'])", "Starred is not allowed"),
        ("C == 1", "no column 'C'"),
        ("Metadata_Coumpound == 'DMSO'", "is it 'Metadata_Compound'"),
        ("index > 1", "no column 'index'"),
        ("list == 1", "no column 'list'"),
        ("B", "yes or no"),
        ("A == 'x", "unterminated"),
        ("B > 1 and", "invalid syntax"),
        ("a b > 1", "invalid syntax"),
        ("", "Metadata_Compound == 'DMSO'"),
        ("A > 1", "fails: .*comparison"),
        ("\0", "null"),
        ("not " * 9999 + "A", r"\.\.\."),
        ("(" * 9999 + "A" + ")" * 9999, "too|deep|nested"),
    ],
)
def test_what_is_refused_and_why(query, words):
    with pytest.raises(InputError, match=words) as caught:
        select(TABLE.assign(Metadata_Compound="DMSO"), query)
    assert len(str(caught.value)) < 600
