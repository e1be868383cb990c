"""The one error that a user can cause and mend."""


class UserError(Exception):
    """Bad input from the user: the message is one sentence that names the value and what to do about it.

    The commands print it on stderr and end with exit code 1; library callers may catch it.
    """


def first_line(error: Exception) -> str:
    """What a library's error says first, or its kind where it says nothing: to be quoted in a sentence of ours."""
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip(" .")), type(error).__name__)
