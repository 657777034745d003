"""Schema of the launcher's config file."""

import math
import re
from dataclasses import dataclass, fields
from typing import Literal

from stunet.errors import UserError

# Names that GKE, xpk (at most 40 characters) and TPU nodes all accept.
NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"

# Node label cloud.google.com/gke-tpu-accelerator and dimensions of the topology, by chip
# (https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "tpu7x": ("tpu7x", 3),
}
CHIPS_PER_HOST = 4  # of GKE machine types whose names end in "-4t", the only ones for several hosts

# Fields of one launcher or two: those that it needs, and those that it also has.
_FIELDS = {
    "jobset": (("queue", "topology"), ("num_slices", "max_restarts", "spot")),
    "queued_resources": (
        ("project", "zone", "runtime_version"),
        ("spot", "disk_device", "max_failures"),
    ),
    "xpk": (("project", "zone", "cluster"), ("num_slices", "max_restarts")),
}


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
      launcher: "jobset" prints a manifest for a GKE cluster with JobSet and Kueue,
        "queued_resources" runs on TPU VMs created for the run, "xpk" runs on a GKE cluster that
        xpk created.
      name: Name of the JobSet, of the workload, or of the queued resource and its TPU.
      tpu_type: Accelerator type, such as "v5litepod-8" or "v6e-4". For jobset, the chip: "v4",
        "v5e", "v5p", "v6e" or "tpu7x".
      experiment: Config file of `experiments.train`, a path relative to the checkout.
      workdir: "gs://BUCKET/FOLDER", which training reads and writes without a mount. Except for
        jobset also "disk://DISK/FOLDER": the disk is mounted at /mnt/DISK; for xpk, it is the name
        of a storage of the cluster.
      overrides: Overrides of the experiment's config, "name=value" as after `--config.` on the
        command line.
      check: Whether to run `experiments.pod_check` before training, whenever training starts.
      image: Container image with everything installed, whose working directory is a checkout. Set
        either `image` or `checkout`.
      checkout: Code to fetch and install whenever training starts.
      queue: Name of the Kueue LocalQueue (jobset).
      topology: Chips of a slice, such as "4x4" or "2x2x2" (jobset). Slices of more than 4 chips
        run on hosts with 4 chips each.
      project: Google Cloud project ID (queued_resources, xpk).
      zone: Zone, such as "us-west4-a" (queued_resources, xpk).
      cluster: Name of the GKE cluster (xpk).
      num_slices: Number of slices (jobset, xpk).
      max_restarts: Number of times that the cluster restarts training (jobset, xpk).
      runtime_version: Software version of the TPU VM (queued_resources).
      spot: Whether to use Spot TPUs: cheaper, but they can be preempted at any time (jobset,
        queued_resources).
      disk_device: Device of the disk of a "disk://" workdir (queued_resources).
      max_failures: Number of consecutive failures that end the launch (queued_resources).
    """

    launcher: Literal["jobset", "queued_resources", "xpk"]
    name: str
    tpu_type: str
    experiment: str
    workdir: str
    overrides: tuple[str, ...] = ()
    check: bool = False
    image: str = ""
    checkout: Checkout | None = None
    queue: str = ""
    topology: str = ""
    project: str = ""
    zone: str = ""
    cluster: str = ""
    num_slices: int = 1
    max_restarts: int = 100
    runtime_version: str = ""
    spot: bool = False
    disk_device: str = "/dev/sdb"
    max_failures: int = 5

    def __post_init__(self):
        required, optional = _FIELDS[self.launcher]
        for name in ("tpu_type", "experiment", *required):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, required for launcher {self.launcher!r}")
        special = {name for pair in _FIELDS.values() for names in pair for name in names}
        unused = special - {*required, *optional}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                raise UserError(
                    f"{field.name}: {value!r}, expected the default {field.default!r} for launcher "
                    f"{self.launcher!r}"
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
        if self.launcher == "jobset":
            self._check_jobset()
        for override in self.overrides:
            if not re.fullmatch(r"[\w.]+=.*", override):
                raise UserError(f"overrides: {override!r}, expected one line NAME=VALUE")

    def _check_jobset(self) -> None:
        if self.disk:
            raise UserError(
                f"workdir: {self.workdir!r}, expected gs://BUCKET/FOLDER for launcher 'jobset'"
            )
        if self.tpu_type not in ACCELERATORS:
            raise UserError(
                f"tpu_type: {self.tpu_type!r}, expected one of {', '.join(ACCELERATORS)} for "
                "launcher 'jobset'"
            )
        dimensions = ACCELERATORS[self.tpu_type][1]
        if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), self.topology):
            example = "x".join("2" * dimensions)
            raise UserError(
                f"topology: {self.topology!r}, expected {dimensions} numbers of chips such as "
                f"{example!r} for {self.tpu_type}"
            )
        if self.chips > CHIPS_PER_HOST and self.chips % CHIPS_PER_HOST:
            raise UserError(
                f"topology: {self.topology!r} has {self.chips} chips, expected a multiple of "
                f"{CHIPS_PER_HOST}"
            )
        if self.num_slices > 1 and self.chips <= CHIPS_PER_HOST:
            raise UserError(
                f"topology: {self.topology!r}, a slice of one host, expected more than "
                f"{CHIPS_PER_HOST} chips for num_slices {self.num_slices} (GKE connects only "
                "slices of several hosts)"
            )
        if not re.fullmatch(NAME, self.queue):
            raise UserError(f"queue: {self.queue!r}, expected the name of a Kueue LocalQueue")

    @property
    def chips(self) -> int:
        """Number of chips of a slice (jobset)."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def disk(self) -> str:
        """Name of the workdir's disk; empty if the workdir is in a bucket."""
        return self.workdir.split("/")[2] if self.workdir.startswith("disk:") else ""

    @property
    def mount(self) -> str:
        """Folder at which the disk is mounted."""
        return f"/mnt/{self.disk}"

    @property
    def workdir_path(self) -> str:
        """The workdir as training gets it."""
        if not self.disk:
            return self.workdir
        return "/".join([self.mount, *self.workdir.split("/")[3:]])
