"""Reading flags so that a mistake in them is one line."""

import re
from typing import Any

from absl import app, flags

from stunet.errors import UserError


def read_flags(argv: list[str], config: flags.FlagHolder | None = None) -> dict[str, Any] | None:
    """Parses the command line; returns the values of the config file's flag, if there is one.

    With `--help` it prints the program's docstring and flags instead, and exits.

    Raises:
      UserError: an unknown flag, a config file that cannot be read, or an override of a field
        that the config file does not have.
    """
    if "--help" in argv[1:]:  # absl's own flag for it would exit with 1
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        flags.FLAGS(argv)
        # A missing file is told of only when its flag is read.
        return config.value.to_dict() if config is not None and config.value else None
    except (KeyError, AttributeError) as error:  # of ml_collections; names the field at best
        name, *hint = re.sub(r"[\\'\"]", "", str(error).replace("\\n", "\n")).splitlines()
        hint = "".join(f" ({line})" for line in hint)
        raise UserError(f"the config file has no field to override: {name}{hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
