"""--learn: where the policy that a guest's calls amount to is written."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.policy.learning import Learner


class Lesson:
    """A policy file to be. Raises UserError where it cannot be written, or is somebody's already."""

    def __init__(self, path: str) -> None:
        from xensock.policy.learning import MARK, Learner

        self._path = path
        self._folder = os.path.dirname(os.path.abspath(path))
        self.learner: Learner = Learner()
        try:
            with open(path, encoding="utf-8", errors="replace") as old:
                if not old.read(len(MARK)).startswith(MARK):
                    raise UserError(
                        f"--learn {path}: there is such a file, and not one of --learn's",
                        "it would be lost",
                        "name another file, or remove it first",
                    )
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unwritable(error) from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise self._unwritable(PermissionError("its directory is not yours to write to"))

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write the policy {self._path}",
            error.strerror or str(error),
            "name a file in a directory that you may write to",
        )

    def write(self, complain: Callable[[str], None]) -> None:
        """Put the policy there as a whole, or say why not."""
        try:
            fd, name = tempfile.mkstemp(prefix=".learn-", dir=self._folder)
            try:
                with open(fd, "w", encoding="utf-8") as new:
                    new.write(self.learner.text())
                mask = os.umask(0o022)
                os.umask(mask)
                os.chmod(name, 0o666 & ~mask)
                os.replace(name, self._path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            complain(f"the policy {self._path} was not written: {error.strerror or error}")
