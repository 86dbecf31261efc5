"""Tables as .xlsx files: what is written is read back, by the standard and by a library."""

import pytest
from spreadsheets import column, sheet

from srum_jax.core.errors import BadInput
from srum_jax.evals import spreadsheet

ODD = 'a<b & c>d "q" \n two\tthree  \x0b \x00 _x0041_ 中文 🙂 '
ROWS = [{"index": 7, "said": ODD}, {"index": 10**6, "other": "x"}, {"said": ""}]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_bytes(spreadsheet.xlsx(["index", "said", "other"], ROWS))
    assert sheet(path) == [
        ["index", "said", "other"],
        [7, ODD, None],
        [10**6, None, "x"],
        [None, None, None],
    ]
    assert path.read_bytes() == spreadsheet.xlsx(["index", "said", "other"], ROWS)


def test_a_library_reads_the_same(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "a.xlsx"
    path.write_bytes(spreadsheet.xlsx(["index", "said"], [{"index": 7, "said": " a<b\n中 "}]))
    rows = list(openpyxl.load_workbook(path).active.values)
    assert rows == [("index", "said"), (7, " a<b\n中 ")]


def test_many_columns_have_names():
    names = [spreadsheet._letters(i) for i in (0, 25, 26, 51, 52, 701, 702)]
    assert names == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
    assert [column(f"{name}3") for name in names] == [0, 25, 26, 51, 52, 701, 702]


def test_a_text_that_no_cell_holds_is_refused():
    with pytest.raises(BadInput, match="cell B3: .* more than 32767 characters"):
        spreadsheet.xlsx(["a", "b"], [{"a": "x"}, {"b": "y" * 32768}])
