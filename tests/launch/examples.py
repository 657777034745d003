import importlib

from experiments.launch.config import Launch
from stunet.schema import from_dict


def example(name, /, **changes):
    """Returns the example config of this name with some fields replaced."""
    module = importlib.import_module(f"experiments.launch.configs.{name}")
    return from_dict(Launch, {**module.get_config().to_dict(), **changes}, "config")
