"""The list of cases and the tests agree."""

from __future__ import annotations

import pytest

from tests.cases.catalogue import DIFFERS, IDS, NOT_HERE, case, cases, id_of_test

ALL = {case_id for ids in IDS.values() for case_id in ids}


def test_every_case_is_here() -> None:
    """Each case has a test, or a reason why it has none, and not both."""
    tested = cases().keys()

    assert ALL == tested | NOT_HERE.keys()
    assert set() == tested & NOT_HERE.keys()
    assert tested >= DIFFERS.keys()


def test_texts() -> None:
    """What is printed fits on a line, and says more than the id."""
    for each in cases().values():
        assert 20 < len(each.text) < 160, each
        assert "\n" not in each.text
    assert all(len(reason) > 20 for reason in [*NOT_HERE.values(), *DIFFERS.values()])


@pytest.mark.parametrize(("case_id", "text"), [("A1", "x: y"), ("N01", "x: y"), ("A01", "x")])
def test_refuses_marks(case_id: str, text: str) -> None:
    """A mark has an id and both halves of the text."""
    with pytest.raises(ValueError, match=case_id):
        case(case_id, text)


def test_id_of_test() -> None:
    """Also the name of one variant, at its place in a file, tells the id."""
    assert "A01" == id_of_test("tests/cases/test_a.py::TestA::test_A01_no_header[x]@cases")
    assert id_of_test("tests/cases/test_catalogue.py::test_texts") is None
