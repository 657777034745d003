"""A training stage from outside the package: `tests.training.external_stage:ModuleTuning`."""

from dataclasses import dataclass, field
from typing import ClassVar

from stunet.training.initial_model import continued_model, read_start_model
from stunet.training.stages import Stage


@dataclass(frozen=True, kw_only=True)
class ModuleTuning(Stage):
    """Trains one module of an existing model."""

    name: ClassVar[str] = "module_tuning"
    init_from: str = field()
    module: str = "conv_out"

    def architecture(self, start):
        return start

    def initial_model(self, run, data, captions):
        start = read_start_model(self.init_from, run, data, sampled=None)
        return continued_model(self.name, start, start.model.unet, start.unet_params, run, data)

    def is_trained(self, path):
        return self.module in path.split("/")
