"""Errors that a user can act on."""


class UserError(Exception):
    """A mistake in the input (data, params, environment) with a message that says what to do.

    The command line prints it as one message, without a traceback, and exits with status 2.
    """
