"""Code outside of this package that settings name as `package.module:name`."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def imported(module: str) -> ModuleType:
    """Returns the module of that name, which may lie in the working directory.

    Scripts and installed commands have the folder that they lie in on Python's path, not the one that they
    are called from. It comes last there: nothing in it hides what is installed.

    Raises:
        ImportError: there is none, or it cannot be imported.
        ValueError: it is no name.
    """
    package = module.partition(".")[0]
    if package not in sys.modules and find_spec(package) is None:
        sys.path.append(os.getcwd())
    return import_module(module)
