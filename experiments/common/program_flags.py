"""Command-line flags of the programs in `experiments`.

Each program keeps its flags in its own `absl.flags.FlagValues`, so that one process can import two
programs:


    FLAGS = flags.FlagValues()
    _CONFIG = config_flags.DEFINE_config_file("config", None, "...", flag_values=FLAGS)
    _WORKDIR = flags.DEFINE_string("workdir", None, "...", flag_values=FLAGS)

    def main(argv: list[str]) -> None:
        values = read_flags(FLAGS, argv, __doc__, _CONFIG)
"""

import re
import sys
from typing import Any

from absl import flags

from stunet.errors import UserError


def read_flags(
    flag_values: flags.FlagValues,
    argv: list[str],
    doc: str,
    config: flags.FlagHolder | None = None,
) -> dict[str, Any] | None:
    """Parses the command line of a program.

    With `--help`, prints `doc` and the flags, and exits with code 0.

    Args:
      flag_values: The program's flags.
      argv: The command line, program name first.
      doc: The program's docstring.
      config: The flag of the config file, if the program has one.

    Returns:
      The config's values as nested dicts, or None without a config.

    Raises:
      UserError: A flag is unknown or malformed, the config file cannot be read, or an override
        names a field that the config file does not have.
    """
    if "--help" in argv[1:]:
        print(doc.strip(), "", "flags:", flag_values.get_help("  "), sep="\n")
        sys.exit(0)
    try:
        flag_values(argv)
        # ml_collections reports a missing file when the flag is read.
        return config.value.to_dict() if config is not None and config.value else None
    except (KeyError, AttributeError) as error:  # raised by ml_collections for unknown fields
        name, *hint = re.sub(r"[\\'\"]", "", str(error).replace("\\n", "\n")).splitlines()
        hint = "".join(f" ({line})" for line in hint)
        raise UserError(f"the config file has no field to override: {name}{hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
