"""What a rank says no to."""

from __future__ import annotations


class Refused(Exception):
    """Training as it was asked for is not possible here: the message, one line, says why.

    Raised by a rank; the run ends with it, since another try would be refused as well.

    Args:
        spoiled: the state is not what it ought to be, and no checkpoint must be made of it.
    """

    def __init__(self, message: str, spoiled: bool = False) -> None:
        super().__init__(message)
        self.spoiled = spoiled
