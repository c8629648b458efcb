"""One line that says what happens now, on a terminal only."""

from __future__ import annotations

import os
from typing import TextIO


class Progress:
    """`tell` replaces the line, `clear` removes it; both do nothing where nobody looks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty() and os.environ.get("TERM") != "dumb"

    def tell(self, text: str) -> None:
        if self._shown:
            self._stream.write(f"\r\x1b[K{text} …")
            self._stream.flush()

    def clear(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
