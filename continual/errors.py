"""What can go wrong with the loop.

ContinualError           (a click.ClickException: the command line prints one line and exits with 1)
├── RefusedError         the new head lost more of the old skill than the budget allows; nothing was made
└── LedgerError          what was tried before cannot be read or written
"""

import click


class ContinualError(click.ClickException):
    """What every error of this room derives from; its message is one line that says what to do."""


class RefusedError(ContinualError):
    """The new head is not good enough; the live one goes on answering, and no feedback is lost."""


class LedgerError(ContinualError):
    """The ledger is damaged, or cannot be written."""
