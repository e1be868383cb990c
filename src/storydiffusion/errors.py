"""The error that a user can cause and fix."""


class UserError(ValueError):
    """Report bad input: the message names the wrong value and says what to do.

    Commands print it on stderr and exit with code 1; library callers catch it, or any ValueError.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip(" .")), type(error).__name__)
