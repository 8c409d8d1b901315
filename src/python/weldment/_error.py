"""The exception of the module."""

from __future__ import annotations


class Error(Exception):
    """What went wrong, in the words of the command line, and what it is about.

    >>> import weldment
    >>> try:
    ...     weldment.check("no/such/model")
    ... except weldment.Error as error:
    ...     error.model, error.exit_code
    ('no/such/model', 2)
    """

    #: What is wrong.
    message: str
    #: What to do about it.
    hint: str | None
    #: The file or folder.
    file: str | None
    #: The tensor's name.
    tensor: str | None
    #: The model, as it was written.
    model: str | None
    #: The line of the recipe, from 1.
    line: int | None
    #: The exit code that the command would have had: 1 the input is wrong, 2 it could not run.
    exit_code: int

    def __init__(
        self,
        text: str,
        message: str | None = None,
        hint: str | None = None,
        file: str | None = None,
        tensor: str | None = None,
        model: str | None = None,
        line: int | None = None,
        exit_code: int = 1,
    ) -> None:
        # All of them, so that the exception can be pickled, as multiprocessing does.
        super().__init__(text, message, hint, file, tensor, model, line, exit_code)
        self.message = text if message is None else message
        self.hint = hint
        self.file = file
        self.tensor = tensor
        self.model = model
        self.line = line
        self.exit_code = exit_code

    def of_recipe(self, file: str, name: str) -> Error:
        """The same, about a recipe that lies in no file of the user's."""
        text, message, hint = (
            part and part.replace(file, name) for part in (str(self), self.message, self.hint)
        )
        about = None if self.file == file else self.file
        return Error(text, message, hint, about, self.tensor, self.model, self.line, self.exit_code)

    def __str__(self) -> str:
        return self.args[0]
