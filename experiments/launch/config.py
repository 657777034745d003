"""What is launched, and where: the schema that a launch's config file is read into."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from stunet.errors import UserError

# What GKE, xpk (40 characters at most) and TPU nodes all take for a name.
NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"


@dataclass(frozen=True)
class Checkout:
    """Code that every host fetches: a git repository that can be read without a password.

    Attributes:
      repository: its address.
      revision: a commit, tag or branch. With a branch that moves on, a restarted run goes on with
        other code than it began with.
    """

    repository: str
    revision: str


@dataclass(frozen=True)
class Launch:
    """One experiment on one TPU.

    Attributes:
      launcher: "xpk", onto a GKE cluster, or "queued_resources", onto TPU VMs of its own.
      name: of the workload, or of the queued resource and its TPU.
      project: the Google Cloud project's id.
      zone: such as "us-west4-a".
      tpu_type: such as "v5litepod-8" or "v6e-4".
      experiment: the experiment's config file, a path in the checkout.
      workdir: "gs://BUCKET/FOLDER" or "disk://DISK/FOLDER"; bucket or disk is mounted on
        /mnt/BUCKET or /mnt/DISK. To xpk both are the name of a storage of the cluster.
      overrides: fields of the experiment, "name=value" as after `--config.` on a command line.
      image: a container image whose working directory is a checkout, with everything installed.
      checkout: instead of an image: code to fetch and install whenever training starts.
      cluster: for "xpk": the GKE cluster.
      num_slices: for "xpk": how many slices of `tpu_type`.
      max_restarts: for "xpk": how often the cluster starts training again.
      runtime_version: for "queued_resources": of the TPU VM's software.
      spot: for "queued_resources": cheaper, and preempted at any time.
      disk_device: for "queued_resources": the device that a "disk://" workdir's disk appears as.
      max_failures: for "queued_resources": how many failures in a row end the launch.
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
        needed = {"xpk": "cluster", "queued_resources": "runtime_version"}[self.launcher]
        for name in ("project", "zone", "tpu_type", "experiment", needed):
            if not getattr(self, name):
                raise UserError(f"launcher {self.launcher!r} needs the field '{name}'")
        others = {
            "xpk": ("runtime_version", "spot", "disk_device", "max_failures"),
            "queued_resources": ("cluster", "num_slices", "max_restarts"),
        }[self.launcher]
        defaults = {field.name: field.default for field in fields(self)}
        for name in others:
            if getattr(self, name) != defaults[name]:
                raise UserError(f"launcher {self.launcher!r} has no use for the field '{name}'")
        if bool(self.image) == (self.checkout is not None):
            raise UserError("give either 'image' or 'checkout'")
        if not re.fullmatch(NAME, self.name):
            raise UserError(
                f"name is {self.name!r}; it must be at most 40 small letters, digits and dashes, "
                "a letter first and no dash last"
            )
        if not re.fullmatch(r"(gs|disk)://[a-z0-9][-_.a-z0-9]*/\S+", self.workdir):
            raise UserError(
                f"workdir is {self.workdir!r}; it must be gs://BUCKET/FOLDER or disk://DISK/FOLDER"
            )
        for override in self.overrides:
            if not re.fullmatch(r"[\w.]+=.*", override):
                raise UserError(f"an override is {override!r}; it must be a line 'name=value'")
        for name in ("num_slices", "max_restarts", "max_failures"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def store(self) -> str:
        """The bucket or disk that holds the workdir."""
        return self.workdir.split("/")[2]

    @property
    def mount(self) -> str:
        """The folder that the bucket or disk is mounted on."""
        return f"/mnt/{self.store}"

    @property
    def mounted_workdir(self) -> str:
        """The workdir's path where it is mounted."""
        return "/".join([self.mount, *self.workdir.split("/")[3:]])
