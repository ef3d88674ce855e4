"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the user can mend. One line: what is wrong, where, what is allowed, what to do."""
