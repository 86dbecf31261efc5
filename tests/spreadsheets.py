"""Reading .xlsx files in tests, by the standard alone."""

import re
import zipfile
from xml.etree import ElementTree

NS = {"m": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}


def sheet(path):
    """The rows of a file's first sheet: lists of texts and whole numbers, None where a cell is not
    there."""
    with zipfile.ZipFile(path) as archive:
        root = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    found = []
    for row in root.findall("m:sheetData/m:row", NS):
        cells = {column(cell.get("r")): value(cell) for cell in row.findall("m:c", NS)}
        found.append([cells.get(i) for i in range(max(cells, default=-1) + 1)])
    width = max(map(len, found))
    return [row + [None] * (width - len(row)) for row in found]


def column(place):
    """The number from 0 of a cell's column: of "AB7" 27."""
    number = 0
    for letter in re.match("[A-Z]+", place)[0]:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def value(cell):
    if cell.get("t") != "inlineStr":
        return int(cell.find("m:v", NS).text)
    text = cell.find("m:is/m:t", NS).text or ""
    return re.sub("_x([0-9A-F]{4})_", lambda m: chr(int(m[1], 16)), text)
