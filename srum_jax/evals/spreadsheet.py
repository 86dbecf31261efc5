"""A table as an .xlsx file, for evaluation servers that take nothing else.

Owns the few parts of Office Open XML (ECMA-376) that one sheet of texts and whole numbers needs:
five small XML files in a ZIP archive. A library would be an extra to install for this one file.
"""

import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from xml.sax import saxutils

from srum_jax.core.errors import BadInput, quoted

MOST = 32767  # characters of a cell
_NS = "http://schemas.openxmlformats.org"
_TYPES = f"{_NS}/officeDocument/2006/relationships"
_KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_NS}/package/2006/content-types">'
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_KIND}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_KIND}.worksheet+xml"/>'
    "</Types>",
    "_rels/.rels": f'<Relationships xmlns="{_NS}/package/2006/relationships">'
    f'<Relationship Id="rId1" Type="{_TYPES}/officeDocument" Target="xl/workbook.xml"/>'
    "</Relationships>",
    "xl/workbook.xml": f'<workbook xmlns="{_NS}/spreadsheetml/2006/main" xmlns:r="{_TYPES}">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_NS}/package/2006/relationships">'
    f'<Relationship Id="rId1" Type="{_TYPES}/worksheet" Target="worksheets/sheet1.xml"/>'
    "</Relationships>",
}
# What XML cannot hold, and what would be read as its escape.
_UNSAID = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")


def xlsx(columns: Sequence[str], rows: Iterable[Mapping[str, str | int]]) -> bytes:
    """The file of one sheet: the columns' names, then a row each; what a row lacks is left empty.

    Raises BadInput for a text that is longer than a cell may be.
    """
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    cells = ([line.get(name, "") for name in columns] for line in lines)
    sheet = "".join(_row(number, values) for number, values in enumerate(cells, 1))
    sheet = f"<sheetData>{sheet}</sheetData>"
    data = f'<worksheet xmlns="{_NS}/spreadsheetml/2006/main">{sheet}</worksheet>'
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (_PARTS | {"xl/worksheets/sheet1.xml": data}).items():
            # A fixed date: the same table is the same file.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), _HEAD + text)
    return out.getvalue()


def _row(number: int, values: Sequence[str | int]) -> str:
    cells = (_cell(f"{_letters(i)}{number}", value) for i, value in enumerate(values))
    return f'<row r="{number}">{"".join(cells)}</row>'


def _cell(place: str, value: str | int) -> str:
    if value == "":
        return ""
    if isinstance(value, int):
        return f'<c r="{place}"><v>{value}</v></c>'
    if len(value) > MOST:
        raise BadInput(f"cell {place}: {quoted(value)} has more than {MOST} characters")
    said = saxutils.escape(_UNSAID.sub(lambda m: f"_x{ord(m[0]):04X}_", value))
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{said}</t></is></c>'


def _letters(column: int) -> str:
    """A, B, ..., Z, AA, ... of a column's number from 0."""
    found = ""
    column += 1
    while column:
        column, place = divmod(column - 1, 26)
        found = chr(ord("A") + place) + found
    return found
