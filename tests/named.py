"""Tests that documents, or tables of tests, name."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def is_defined(path: Path, name: str) -> bool:
    """Whether a file has a function of that name, in Python also a class; "": whether it is there."""
    if not path.is_file() or not name:
        return path.is_file()
    text = path.read_text()
    if path.suffix != ".py":
        return re.search(rf"^\w[\w *]* {name}\b", text, re.M) is not None
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return name in {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)}
