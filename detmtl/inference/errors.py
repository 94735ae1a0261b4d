"""What goes wrong in writing a file to deploy."""


class ExportError(RuntimeError):
    """The exported file doesn't do what the model does; nothing was written."""
