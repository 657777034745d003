"""Command-line flags of the programs in `experiments`.

Each program keeps its flags in its own `absl.flags.FlagValues`, so that one process can import
several programs:

    FLAGS = flags.FlagValues()
    _CONFIG = config_flags.DEFINE_config_file("config", None, "...", flag_values=FLAGS)
    _WORKDIR = flags.DEFINE_string("workdir", None, "...", flag_values=FLAGS)

    def main(argv: list[str]) -> None:
        values = read_flags(FLAGS, argv, __doc__, _CONFIG)
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags

from stunet.errors import UserError
from stunet.paths import AnyPath, check_outputs, user_path
from stunet.schema import MAX_SEED

_MAX_CLIPS = 100_000  # of a measurement, all in memory
_WIDTH = 100  # columns of the help text
_VALUES = {
    "int": "N",
    "float": "X",
    "string": "TEXT",
    "config object": "FILE",
    "comma separated list of strings": "TEXT",
}


def define_num_clips(
    flag_values: flags.FlagValues, default: int, text: str = "number of clips", minimum: int = 1
) -> flags.FlagHolder[int]:
    """Defines the flag `num_clips` of a program that measures clips."""
    limits = {"lower_bound": minimum, "upper_bound": _MAX_CLIPS}
    return flags.DEFINE_integer("num_clips", default, text, flag_values=flag_values, **limits)


def define_seed(flag_values: flags.FlagValues, text: str) -> flags.FlagHolder[int]:
    """Defines the flag `seed`, 0 by default."""
    limits = {"lower_bound": 0, "upper_bound": MAX_SEED}
    return flags.DEFINE_integer("seed", 0, text, flag_values=flag_values, **limits)


def read_flags(
    flag_values: flags.FlagValues,
    argv: list[str],
    doc: str,
    config: flags.FlagHolder | None = None,
    unknown: list[str] | None = None,
) -> dict[str, Any] | None:
    """Parses the command line of a program.

    With `--help`, prints `doc` and the flags, and exits with code 0. Values that begin with `~`
    are paths in the home directory, which no shell expands in `--out=~/x`.

    Args:
      flag_values: The program's flags.
      argv: The command line, program name first.
      doc: The program's docstring.
      config: The flag of the config file, if the program has one.
      unknown: Receives the flags that the program does not have. None refuses them.

    Returns:
      The config's values as nested dicts, or None without a config.

    Raises:
      UserError: a flag is unknown, malformed, not finite or beyond 32 bits, the config file cannot
        be read, or an override names a field that the config file does not have.
    """
    if "--help" in argv[1:]:
        lines = list(_help_lines(flag_values))
        print(doc.strip(), *(["", "Flags:"] if lines else []), *lines, sep="\n")
        if config is not None:
            print(f"\nOverride fields of the config file by --{config.name}.FIELD=VALUE.")
        sys.exit(0)
    try:
        arguments = [_expand_home(argument) for argument in argv]
        rest = flag_values(arguments, known_only=unknown is not None)
        _check_values(flag_values)
        if unknown is not None:
            unknown += rest[1:]
        # ml_collections reports a missing file when the flag is read.
        return config.value.to_dict() if config is not None and config.value else None
    except (KeyError, AttributeError) as error:  # raised by ml_collections for unknown fields
        name, *hint = re.sub(r"[\\'\"]", "", str(error).replace("\\n", "\n")).splitlines()
        hint = "".join(f" ({line})" for line in hint)
        raise UserError(f"--config: no field to override: {name}{hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def read_input_and_output(
    flag_values: flags.FlagValues, argv: list[str], doc: str
) -> tuple[AnyPath, AnyPath]:
    """Parses the command line of a program that converts one file: INPUT OUTPUT.

    Raises:
      UserError: there are other arguments, or both are the same file.
    """
    arguments: list[str] = []
    read_flags(flag_values, argv, doc, unknown=arguments)
    if len(arguments) != 2 or any(argument.startswith("-") for argument in arguments):
        raise UserError(f"{' '.join(arguments) or 'no arguments'}: expected an input and an output")
    source, out = map(user_path, arguments)
    check_outputs([("OUTPUT", out)], [("INPUT", source)])
    return source, out


def _check_values(flag_values: flags.FlagValues) -> None:
    """Raises a `UserError` for a number that no program can use, and for a text with NUL."""
    for name in flag_values:
        found = flag_values[name].value
        for value in found if isinstance(found, list) else [found]:
            if isinstance(value, str) and "\0" in value:
                raise UserError(f"--{name}: {value}, expected a text without NUL characters")
            if isinstance(value, int | float) and not -MAX_SEED <= value <= MAX_SEED:
                raise UserError(
                    f"--{name}: {value}, expected a number from {-MAX_SEED} to {MAX_SEED}"
                )


def _expand_home(argument: str) -> str:
    match = re.fullmatch(r"((?:--[\w.-]+=)*)(~.*)", argument)  # --set=--config.data.source=~/x
    return f"{match[1]}{user_path(match[2])}" if match else argument


def _help_lines(flag_values: flags.FlagValues) -> Iterator[str]:
    """Yields the help of the program's own flags, without those of absl."""
    modules = flag_values.flags_by_module_dict()
    own = [flag for module, found in modules.items() if module != "absl.flags" for flag in found]
    heads = [_head(flag) for flag in own]
    indent = " " * (max(map(len, heads), default=0) + 4)
    for head, flag in zip(heads, own, strict=True):
        first = f"  {head}".ljust(len(indent))
        yield from textwrap.wrap(
            _help(flag), _WIDTH, initial_indent=first, subsequent_indent=indent
        )


def _head(flag: flags.Flag) -> str:
    """Returns the flag with a placeholder for its value: `--out=TEXT`."""
    kind = flag.flag_type().removeprefix("multi ").removesuffix(" enum")
    if kind == "bool":
        return f"--[no]{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    return f"--{flag.name}={'|'.join(choices) if choices else _VALUES.get(kind, 'VALUE')}"


def _help(flag: flags.Flag) -> str:
    """Returns the help text, followed by the default if there is one."""
    text = re.sub(r"^<[^>]*>: ", "", flag.help.partition(";\n    repeat this option")[0])
    repeatable = isinstance(flag, flags.MultiFlag)
    if repeatable:
        default = ", ".join(map(str, flag.default or ()))
    else:
        default = (flag.default_as_str or "").strip("'").removesuffix("None")
    notes = ["repeatable"] * repeatable
    notes += [f"default: {default}"] if default and "default" not in text else []
    return f"{text} ({'; '.join(notes)})" if notes else text
