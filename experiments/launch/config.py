"""Schema of the launcher's config file."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from stunet.errors import UserError

# Names that GKE, xpk (at most 40 characters) and TPU nodes all accept.
NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"


@dataclass(frozen=True)
class Checkout:
    """A public git repository, from which every host fetches the code.

    Attributes:
      repository: URL of the repository, readable without a password.
      revision: Commit, tag or branch. With a branch, a restarted run continues with the branch's
        latest code.
    """

    repository: str
    revision: str


@dataclass(frozen=True)
class Launch:
    """An experiment, and the TPU that it trains on.

    Attributes:
      launcher: "xpk" runs on a GKE cluster, "queued_resources" on TPU VMs created for the run.
      name: Name of the workload, or of the queued resource and its TPU.
      project: Google Cloud project ID.
      zone: Zone, such as "us-west4-a".
      tpu_type: Accelerator type, such as "v5litepod-8" or "v6e-4".
      experiment: Config file of `experiments.train`, a path relative to the checkout.
      workdir: "gs://BUCKET/FOLDER" or "disk://DISK/FOLDER". The bucket or disk is mounted at
        /mnt/BUCKET or /mnt/DISK; for xpk, it is the name of a storage of the cluster.
      overrides: Overrides of the experiment's config, "name=value" as after `--config.` on the
        command line.
      image: Container image with everything installed, whose working directory is a checkout. Set
        either `image` or `checkout`.
      checkout: Code to fetch and install whenever training starts.
      cluster: Name of the GKE cluster (xpk).
      num_slices: Number of slices of `tpu_type` (xpk).
      max_restarts: Number of times that the cluster restarts training (xpk).
      runtime_version: Software version of the TPU VM (queued_resources).
      spot: Whether to use a Spot TPU: cheaper, but it can be preempted at any time
        (queued_resources).
      disk_device: Device of the disk of a "disk://" workdir (queued_resources).
      max_failures: Number of consecutive failures that end the launch (queued_resources).
    """

    launcher: Literal["xpk", "queued_resources"]
    name: str
    project: str
    zone: str
    tpu_type: str
    experiment: str
    workdir: str
    overrides: tuple[str, ...] = ()
    image: str = ""
    checkout: Checkout | None = None
    cluster: str = ""
    num_slices: int = 1
    max_restarts: int = 100
    runtime_version: str = ""
    spot: bool = False
    disk_device: str = "/dev/sdb"
    max_failures: int = 5

    def __post_init__(self):
        required = {"xpk": "cluster", "queued_resources": "runtime_version"}[self.launcher]
        for name in ("project", "zone", "tpu_type", "experiment", required):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, required for launcher {self.launcher!r}")
        unused = {
            "xpk": ("runtime_version", "spot", "disk_device", "max_failures"),
            "queued_resources": ("cluster", "num_slices", "max_restarts"),
        }[self.launcher]
        defaults = {field.name: field.default for field in fields(self)}
        for name in unused:
            if getattr(self, name) != defaults[name]:
                raise UserError(
                    f"{name}: {getattr(self, name)!r}, expected the default {defaults[name]!r} for "
                    f"launcher {self.launcher!r}"
                )
        if bool(self.image) == (self.checkout is not None):
            state = "both" if self.image else "neither"
            raise UserError(f"image, checkout: {state} set, expected one of them")
        if not re.fullmatch(NAME, self.name):
            raise UserError(
                f"name: {self.name!r}, expected at most 40 of a-z, 0-9 and '-', starting with a "
                "letter and not ending with '-'"
            )
        if not re.fullmatch(r"(gs|disk)://[a-z0-9][-_.a-z0-9]*/\S+", self.workdir):
            raise UserError(
                f"workdir: {self.workdir!r}, expected gs://BUCKET/FOLDER or disk://DISK/FOLDER"
            )
        for override in self.overrides:
            if not re.fullmatch(r"[\w.]+=.*", override):
                raise UserError(f"overrides: {override!r}, expected one line NAME=VALUE")
        for name in ("num_slices", "max_restarts", "max_failures"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}, expected at least 1")

    @property
    def store(self) -> str:
        """Name of the bucket or disk of the workdir."""
        return self.workdir.split("/")[2]

    @property
    def mount(self) -> str:
        """Folder at which the bucket or disk is mounted."""
        return f"/mnt/{self.store}"

    @property
    def mounted_workdir(self) -> str:
        """Path of the mounted workdir."""
        return "/".join([self.mount, *self.workdir.split("/")[3:]])
