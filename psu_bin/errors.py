"""The one error type of psu-bin, and how it reads on a terminal.

Every failure that a user can cause or meet is a PsuError: `where: what: datum`, in lower case,
without a full stop, and a hint when there is a next thing to do.  Only cli.py prints it and turns
it into an exit status.  An exception of any other type is a defect of psu-bin.
"""

from __future__ import annotations

EXIT_REFUSED = 1
EXIT_USAGE = 2


class PsuError(Exception):
    """Something is wrong and nothing was changed.

    where: the file, process or argument that it is about.
    what:  what is wrong with it, with the datum that shows it.
    hint:  what to do next, or "" when there is nothing.
    status: the exit status of the command, EXIT_REFUSED or EXIT_USAGE.
    """

    def __init__(self, where: str, what: str, hint: str = "", *, status: int = EXIT_REFUSED) -> None:
        super().__init__(where, what, hint)
        self.where = where
        self.what = what
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        return f"{text} ({self.hint})" if self.hint else text
