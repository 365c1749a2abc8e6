"""The error that a user can mend."""


class UserError(ValueError):
    """Input that vosforge refuses.

    The message is one line: the file or field, what was expected, what was found, and the way out. Programs
    print it and exit with status 2; they never print a traceback for it unless `--verbose` asks for one.
    """
