"""The errors that are somebody's request or input, not a defect: each is one line that says what to do."""


class VmalabError(Exception):
    """A failure whose message is for the user.

    The message is one line: what is wrong, where (file, line, record number), and what to do.  Text that came from
    outside is escaped before it gets into one.  The command line prints it and exits with status 2.
    """


class InputError(VmalabError):
    """A file, a record, an argument or a request that is not what it has to be."""
