"""Every error that a user can meet, sorted by whose doing it is.

The three kinds of failure of a rollout are three types, so that no code has to guess:
`ToolError` is the model's mistake and becomes an observation; `ToolUnavailable` and `ToolCrashed`
(and `EngineError`) are ours, end the episode unscored and keep their traceback; anything else is a
bug and crashes.
"""


class SaccadeError(Exception):
    """Base of all errors with a sentence for the user; the command line prints them without a
    traceback.
    """


class ToolError(SaccadeError):
    """The model asked for something impossible; the sentence is shown to the model as an
    observation.
    """


class ToolUnavailable(SaccadeError):
    """A tool could not be reached or missed its deadline: our fault, never scored as the
    model's.
    """


class ToolCrashed(SaccadeError):
    """A tool raised something unexpected: our fault, never scored as the model's."""


class EngineError(SaccadeError):
    """The engine that answers for the model failed: our fault, never scored as the model's."""


class ImageError(SaccadeError):
    """A picture that can't be read safely: too big, broken, or of a type that is not accepted."""


class RecipeError(SaccadeError):
    """A recipe or flag that can't be run."""


class DataError(SaccadeError):
    """A data file with rows that can't be used; the message lists them."""


class StorageError(SaccadeError):
    """The run folder can't be written or read; what was stored before is whole."""
