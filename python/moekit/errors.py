"""The exceptions that moekit adds to Python's own."""


class FileError(ValueError):
    """A file that cannot be read as what it claims to be.

    The message reads `[format] path: what was found; what is required` and names the tensor, the
    key or the offset. A missing or unreadable file is a FileError too (its cause is the OSError).
    """


class MissingTensorError(FileError, KeyError):
    """A checkpoint has no tensor of that name: a FileError, and a KeyError as mappings raise."""

    __str__ = FileError.__base__.__str__  # KeyError's would print the message in quotes
