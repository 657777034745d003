"""The commands of a launch, each a list of arguments; nothing here runs any.

Their flags are those of gcloud 528 and xpk 1.16.
"""

import shlex

from experiments.common.exit_codes import PREEMPTED
from experiments.launch.config import Launch

BASE_IMAGE = "python:3.12"  # for a checkout: it has git, which the slim one lacks
GRACE_S = 300  # from SIGTERM to SIGKILL, for saving; a Spot VM gives up to 30 s, whatever this is

# https://cloud.google.com/storage/docs/cloud-storage-fuse/install
INSTALL_GCSFUSE = " && ".join(
    [
        "curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg"
        " | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null",
        'echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]'
        ' https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"'
        " | sudo tee /etc/apt/sources.list.d/gcsfuse.list",
        "sudo apt-get update",
        "sudo apt-get install --yes gcsfuse",
    ]
)


def training(config: Launch) -> str:
    """The shell line that trains, in the container, on every host.

    It ends in `exec`, so that SIGTERM reaches training itself. A checkout that cannot be had exits
    1: with git's own 128 xpk would start it again.
    """
    train = [
        *("python", "-m", "experiments.train"),
        f"--config={config.experiment}",
        f"--workdir={config.mounted_workdir}",
        "--cluster=auto",
        *(f"--config.{override}" for override in config.overrides),
    ]
    if config.checkout is None:
        return f"exec {shlex.join(train)}"
    fetch = [
        shlex.join(["git", "clone", "--quiet", config.checkout.repository, "stunet"]),
        "cd stunet",
        shlex.join(["git", "checkout", "--quiet", config.checkout.revision]),
        "pip install --quiet -r requirements-tpu.txt",
    ]
    return f"{' && '.join(fetch)} || exit 1; exec {shlex.join(train)}"


def xpk_create(config: Launch) -> list[str]:
    """Hands the workload to the cluster, which starts it again whenever it was preempted.

    By itself xpk restarts exit code 42 and those from 127 on, hence a killed container too.
    """
    return [
        *("xpk", "workload", "create", f"--workload={config.name}"),
        *_xpk_flags(config),
        f"--tpu-type={config.tpu_type}",
        f"--num-slices={config.num_slices}",
        f"--docker-image={config.image or BASE_IMAGE}",
        f"--storage={config.store}",
        f"--max-restarts={config.max_restarts}",
        f"--restart-on-exit-codes={PREEMPTED}",
        f"--termination-grace-period-seconds={GRACE_S}",
        f"--command={training(config)}",
    ]


def xpk_wait(config: Launch) -> list[str]:
    """Waits for the workload's end: exit code 0 it is done, 124 a week went by, 125 it failed."""
    wait = f"--wait-for-job-completion={config.name}"
    return ["xpk", "workload", "list", wait, *_xpk_flags(config)]


def state(config: Launch) -> list[str]:
    """Prints the queued resource's state; nothing where there is none."""
    named = [f"--filter=name~/{config.name}$", "--format=value(state.state)"]
    return [*_queued("list"), *_gcloud_flags(config), *named]


def create(config: Launch) -> list[str]:
    """Asks for the TPU, in a queue."""
    argv = [
        *_queued("create"),
        config.name,
        *_gcloud_flags(config),
        f"--node-id={config.name}",
        f"--accelerator-type={config.tpu_type}",
        f"--runtime-version={config.runtime_version}",
    ]
    if config.spot:
        argv.append("--spot")
    if config.workdir.startswith("disk:"):
        disk = f"projects/{config.project}/zones/{config.zone}/disks/{config.store}"
        argv.append(f"--data-disk=source={disk},mode=read-write")
    return argv


def delete(config: Launch) -> list[str]:
    """Gives the queued resource back, with its TPU."""
    return [*_queued("delete"), config.name, *_gcloud_flags(config), "--force", "--quiet"]


def start(config: Launch) -> list[str]:
    """Mounts the workdir and starts training in a container, on every host where it isn't running.

    The container outlives the connection that started it, and what it printed outlives it.
    """
    image = config.image or BASE_IMAGE
    run = [
        *("sudo", "docker", "run", "--detach", f"--name={config.name}"),
        *("--privileged", "--net=host", "--shm-size=16g"),  # what a container needs for the TPU
        f"--stop-timeout={GRACE_S}",
        "--env=PYTHONUNBUFFERED=1",
        f"--volume={config.mount}:{config.mount}",
        *(image, "bash", "-c", training(config)),
    ]
    script = _mount(config)
    registry = image.split("/")[0]
    if registry.endswith(("docker.pkg.dev", "gcr.io")):
        script += f" && sudo gcloud auth configure-docker {registry} --quiet"
    # Not --force: that would kill, where `docker stop` lets training save.
    script += (
        f" && if sudo docker ps --format={{{{.Names}}}} | grep -qx {config.name};"
        f" then echo {config.name} is running already;"
        f" else sudo docker rm {config.name}; {shlex.join(run)}; fi"
    )
    return _on_all_hosts(config, script)


def follow(config: Launch) -> list[str]:
    """Shows what training prints and exits with its code; may be broken off and begun again."""
    logs = f"sudo docker logs --follow --tail=1000 {config.name}"
    # Two steps: `exit` with nothing would be 2, a mistake of the user's.
    return _on_all_hosts(config, f"{logs}; code=$(sudo docker wait {config.name}) && exit $code")


def plan(config: Launch) -> list[tuple[str, list[str]]]:
    """Every command that the launch may run, each with when it does."""
    if config.launcher == "xpk":
        return [
            ("once; the cluster starts training again after a preemption", xpk_create(config)),
            ("until it is done, or has failed for good", xpk_wait(config)),
        ]
    return [
        ("first, every minute while waiting, and after every failure", state(config)),
        ("where it was suspended or has failed", delete(config)),
        ("where there is none, or no more", create(config)),
        ("when it is ACTIVE", start(config)),
        (f"until training ends; after exit code {PREEMPTED}: start again", follow(config)),
        ("when training is done", delete(config)),
    ]


def _mount(config: Launch) -> str:
    """Mounts the bucket or disk where it isn't yet; a disk is never formatted here."""
    if config.workdir.startswith("gs:"):
        mount = f"command -v gcsfuse >/dev/null || {{ {INSTALL_GCSFUSE}; }}"
        mount += f"; sudo mkdir -p {config.mount}"
        mount += f" && sudo gcsfuse --implicit-dirs {config.store} {config.mount}"
    else:
        device = shlex.quote(config.disk_device)
        mount = f"sudo mkdir -p {config.mount}"
        mount += f" && sudo mount -o discard,defaults {device} {config.mount}"
    return f"{{ mountpoint -q {config.mount} || {{ {mount}; }}; }}"


def _xpk_flags(config: Launch) -> list[str]:
    return [f"--cluster={config.cluster}", *_gcloud_flags(config)]


def _gcloud_flags(config: Launch) -> list[str]:
    return [f"--project={config.project}", f"--zone={config.zone}"]


def _queued(verb: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "queued-resources", verb]


def _on_all_hosts(config: Launch, script: str) -> list[str]:
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", config.name, *_gcloud_flags(config)]
    return [*ssh, "--worker=all", f"--command={script}"]
