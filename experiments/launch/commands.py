"""Builds the commands of a launch as argument lists; `runner.py` runs them.

The flags are those of gcloud 528 and xpk 1.16.
"""

import shlex

from experiments.common.exit_codes import PREEMPTED
from experiments.launch.config import Launch

BASE_IMAGE = "python:3.12"  # for a checkout; has git, unlike python:3.12-slim
GRACE_S = 300  # from SIGTERM to SIGKILL, to save a checkpoint; Spot VMs allow at most 30 s

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
    """Returns the shell line that trains, to run in a container on every host.

    The line ends in `exec`, so that training receives SIGTERM. If the checkout fails, it exits with
    code 1: xpk would restart git's own exit code 128.
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
    """Returns the command that submits the workload to the cluster, which restarts it if preempted.

    xpk restarts exit codes 42 and 127 to 255 by default, including killed containers.
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
    """Returns the command that waits for the workload's end.

    Its exit code is 0 if the workload is done, 124 after a week, and 125 if the workload failed.
    """
    wait = f"--wait-for-job-completion={config.name}"
    return ["xpk", "workload", "list", wait, *_xpk_flags(config)]


def state(config: Launch) -> list[str]:
    """Returns the command that prints the queued resource's state, or nothing if there is none."""
    selection = [f"--filter=name~/{config.name}$", "--format=value(state.state)"]
    return [*_queued("list"), *_gcloud_flags(config), *selection]


def create(config: Launch) -> list[str]:
    """Returns the command that requests the TPU as a queued resource."""
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
    """Returns the command that deletes the queued resource and its TPU."""
    return [*_queued("delete"), config.name, *_gcloud_flags(config), "--force", "--quiet"]


def start(config: Launch) -> list[str]:
    """Returns the command that mounts the workdir and starts training in a container on every host.

    Hosts whose container is running are left alone. The container survives the connection that
    started it, and its log survives the container's end.
    """
    image = config.image or BASE_IMAGE
    run = [
        *("sudo", "docker", "run", "--detach", f"--name={config.name}"),
        *("--privileged", "--net=host", "--shm-size=16g"),  # required for TPU access
        f"--stop-timeout={GRACE_S}",
        "--env=PYTHONUNBUFFERED=1",
        f"--volume={config.mount}:{config.mount}",
        *(image, "bash", "-c", training(config)),
    ]
    script = _mount(config)
    registry = image.split("/")[0]
    if registry.endswith(("docker.pkg.dev", "gcr.io")):
        script += f" && sudo gcloud auth configure-docker {registry} --quiet"
    # `docker rm --force` would kill running training, which `docker stop` lets save.
    script += (
        f" && if sudo docker ps --format={{{{.Names}}}} | grep -qx {config.name};"
        f" then echo {config.name} is already running;"
        f" else sudo docker rm {config.name}; {shlex.join(run)}; fi"
    )
    return _on_all_hosts(config, script)


def follow(config: Launch) -> list[str]:
    """Returns the command that prints the training log and exits with training's exit code.

    It can be interrupted and run again.
    """
    logs = f"sudo docker logs --follow --tail=1000 {config.name}"
    # Two steps, because `exit` without a number would exit with 2, the code for wrong usage.
    return _on_all_hosts(config, f"{logs}; code=$(sudo docker wait {config.name}) && exit $code")


def plan(config: Launch) -> list[tuple[str, list[str]]]:
    """Returns all commands that the launch may run, each with a description of when it runs."""
    if config.launcher == "xpk":
        return [
            ("once; the cluster restarts training after a preemption", xpk_create(config)),
            ("until training is done or has failed", xpk_wait(config)),
        ]
    return [
        ("first, every minute while waiting, and after every failure", state(config)),
        ("if the TPU is suspended or has failed", delete(config)),
        ("if there is no TPU", create(config)),
        ("when the TPU is ACTIVE", start(config)),
        (f"until training ends; exit code {PREEMPTED} restarts it", follow(config)),
        ("when training is done", delete(config)),
    ]


def _mount(config: Launch) -> str:
    """Returns the shell line that mounts the bucket or disk unless it is mounted."""
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
