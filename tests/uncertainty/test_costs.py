import numpy as np
import pytest

from clipadapter.errors import DataError, InputError, UnknownNameError
from clipadapter.uncertainty.costs import check_costs, decide, parse_costs, read_costs

NAMES = ["defect", "nominal"]


def test_two_classes_have_the_threshold_of_the_textbook():
    """A defect is answered from p = c_fp / (c_fp + c_fn) on (Elkan 2001, eq. 2)."""
    for false_alarm, missed in ((1.0, 1.0), (1.0, 10.0), (3.0, 1.0), (0.5, 19.5)):
        p = false_alarm / (false_alarm + missed) + np.array([-1e-6, 1e-6])
        assert decide(np.stack([p, 1 - p], axis=1), [[0, missed], [false_alarm, 0]]).tolist() == [1, 0]


def test_the_cheapest_class_in_loops_and_of_equally_dear_ones_the_most_probable():
    rng = np.random.default_rng(0)
    p, costs = rng.dirichlet(np.ones(4), 6), rng.random((4, 4)) * (1 - np.eye(4))
    cheapest = [min(range(4), key=lambda k, row=row: sum(row[true] * costs[true, k] for true in range(4))) for row in p]
    assert decide(p, costs).tolist() == cheapest
    np.testing.assert_array_equal(decide(p, 3 * (1 - np.eye(4))), p.argmax(axis=1))
    costs = [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert decide([[0.3, 0.5, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], costs).tolist() == [1, 0, 2]


def test_false_and_missed_by_hand():
    names = ["a", "b", "c"]
    np.testing.assert_array_equal(parse_costs("false b", names), [[0, 10, 1], [1, 0, 1], [1, 10, 0]])
    np.testing.assert_array_equal(parse_costs("missed b", names), [[0, 1, 1], [10, 0, 10], [1, 1, 0]])
    both = parse_costs("missed a=20, false c=7.5", names)
    np.testing.assert_array_equal(both, [[0, 20, 20], [1, 0, 7.5], [1, 1, 0]])
    np.testing.assert_array_equal(both, parse_costs("false c=7.5,missed a=20", names))


def test_names_of_classes_may_hold_anything():
    names = ["great white shark, man-eater", "x=1", "Apple pie", "false c"]
    assert parse_costs("false great white shark, man-eater=5", names)[1].tolist() == [5, 0, 1, 1]
    assert parse_costs("missed x=1", names)[1].tolist() == [10, 0, 10, 10]
    assert parse_costs("missed x=1 = 3", names)[1].tolist() == [3, 0, 3, 3]
    assert parse_costs("Missed apple pie", names)[2].tolist() == [10, 10, 0, 10]
    assert parse_costs("missed false c", names)[3].tolist() == [10, 10, 10, 0]
    assert parse_costs("false A", ["a", "A"])[0, 1] == 10
    with pytest.raises(UnknownNameError):  # alike but for capitals: it must be exact
        parse_costs("false ab", ["Ab", "AB"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nominal", "neither 'false CLASS' nor 'missed CLASS'"),
        ("false ", "neither"),
        ("", "neither"),
        ("false nominl", "no class is called 'nominl'. Did you mean 'nominal'"),
        ("false nominl=3", "no class is called 'nominl'"),
        *((f"false nominal={weight}", "must be a number of at least 1") for weight in ("0.5", "inf", "nan", "much")),
    ],
)
def test_words_that_say_no_cost_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse_costs(text, NAMES)


def read(tmp_path, data, names):
    path = tmp_path / "costs.csv"
    path.write_bytes(data)
    return read_costs(path, names)


def test_a_file_is_read_in_any_order_and_names_with_commas_are_quoted(tmp_path):
    text = "true, nominal ,defect\n\nnominal,0,1\ndefect,10.5,0\n"
    np.testing.assert_array_equal(read(tmp_path, text.encode("utf-8-sig"), NAMES), [[0, 10.5], [1, 0]])
    np.testing.assert_array_equal(read(tmp_path, b',"a, b",c\n"a, b",0,2\nc,3,0\n', ["c", "a, b"]), [[0, 3], [2, 0]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("x,defect\ndefect,0\n", "first line lacks classes: 'nominal'"),
        ("x,defect,nominal\ndefect,0,1\n", "first column lacks classes: 'nominal'"),
        ("x,defect,nominal,crack\ndefect,0,1,1\nnominal,1,0,1\n", "names classes that the model does not have: 'cra"),
        ("x,defect,nominal,nominal\ndefect,0,1,1\nnominal,1,0,1\n", "first line repeats classes: 'nominal'"),
        ("x,defect,nominal\ndefect,0\nnominal,1,0\n", "row of 'defect' has 1 costs for 2 classes"),
        ("x,defect,nominal\ndefect,0,-1\nnominal,1,0\n", "true 'defect', answer 'nominal': .* at least 0, got '-1'"),
        ("x,defect,nominal\ndefect,0,\nnominal,1,0\n", "got nothing"),
        ("x,defect,nominal\ndefect,0,much\nnominal,1,0\n", "got 'much'"),
        ("x,defect,nominal\ndefect,0,nan\nnominal,1,0\n", "got 'nan'"),
        ("x,defect,nominal\ndefect,5,1\nnominal,1,0\n", "for pictures of 'defect' the correct prediction costs 5"),
        ('x,"defect\n', "no CSV file"),
        ("x;defect;nominal\ndefect;0;1\nnominal;1;0\n", "separated by commas"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, text.encode(), NAMES)


def test_a_file_that_is_none_says_so(tmp_path):
    with pytest.raises(DataError, match="can't be opened"):
        read_costs(tmp_path / "none.csv", NAMES)
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path, "x,défect\n".encode("latin-1"), NAMES)


def test_arrays_that_are_no_costs_are_refused():
    for wrong in (np.ones((2, 3)), np.zeros((0, 0)), 1.0, [[0, -1], [1, 0]], [[0, np.inf], [1, 0]], [[2, 1], [1, 0]]):
        with pytest.raises(InputError):
            check_costs(wrong)
    with pytest.raises(InputError, match=r"\(m, 2\)"):
        decide([[0.2, 0.3, 0.5]], parse_costs("false defect", NAMES))
