"""Model folders by path, training workdir, hub id or name."""

from stunet.errors import UserError
from stunet.paths import AnyPath, user_path
from stunet.weights import shipped
from stunet.weights.hub import is_hub_id, parse_hub_id


def find_model_folder(path: str | AnyPath) -> AnyPath:
    """Resolves a model folder, a training workdir, a hub id or the name of a model of the package.

    A name (`shipped.NAMES`) applies only if no such path exists. A model on the hub is downloaded.

    Returns:
      The folder with the model's `config.json`: `path`, its `model/`, a folder in the cache of
      `huggingface_hub`, or the package's folder.

    Raises:
      UserError: There is no model, or it cannot be downloaded.
    """
    if is_hub_id(path):
        from stunet.weights.hub_models import download_model_folder  # imports this module

        return download_model_folder(parse_hub_id(path))
    path = user_path(path)
    if str(path) in shipped.NAMES and not path.exists():
        return shipped.FOLDER / path
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"{path}: training workdir without model/, which the end of training writes; write one "
            f"from a checkpoint with `python -m experiments.export --workdir={path}`"
        )
    if not path.exists():
        raise UserError(
            f"{path}: no such folder, expected a model folder, a training workdir, "
            f"hf://OWNER/NAME or one of {', '.join(shipped.NAMES)}"
        )
    raise UserError(
        f"{path}: no model found, expected config.json (model folder) or model/ (training workdir)"
    )
