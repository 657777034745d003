"""Builds the commands of a launch as argument lists; `runner.py` runs them.

The flags are those of gcloud 528 and xpk 1.16.
"""

import shlex

from experiments.common.exit_codes import PREEMPTED
from experiments.launch.config import Launch

BASE_IMAGE = "python:3.12"  # for a checkout; has git, unlike python:3.12-slim
GRACE_S = 300  # from SIGTERM to SIGKILL, to save a checkpoint; Spot VMs allow at most 30 s

# The port that TPU VMs' firewalls pass. Since 0.8.1 JAX's own is 8482, which some do not: the
# processes then never find each other (https://github.com/jax-ml/jax/issues/35905).
COORDINATOR_PORT = 8476


def training(config: Launch, before: str = "") -> str:
    """Returns the shell line that trains, to run in a container on every host.

    The line ends in `exec`, so that training receives SIGTERM. If the checkout fails, it exits with
    code 1: xpk would restart git's own exit code 128.

    Args:
      config: The launch.
      before: Shell line that runs after the checkout.
    """
    lines = []
    if config.checkout is not None:
        fetch = [
            shlex.join(["git", "clone", "--quiet", config.checkout.repository, "stunet"]),
            "cd stunet",
            shlex.join(["git", "checkout", "--quiet", config.checkout.revision]),
            "pip install --quiet -r requirements-tpu.txt",
        ]
        lines.append(f"{' && '.join(fetch)} || exit 1")
    if before:
        lines.append(before)
    if config.check:
        lines.append(f"{_program(config, 'experiments.pod_check')} || exit $?")
    lines.append(f"exec {_program(config, 'experiments.train')}")
    return "; ".join(lines)


def _program(config: Launch, name: str) -> str:
    return shlex.join(
        [
            *("env", f"JAX_COORDINATOR_PORT={COORDINATOR_PORT}", "python", "-m", name),
            f"--config={config.experiment}",
            f"--workdir={config.workdir_path}",
            "--cluster=auto",
            *(f"--config.{override}" for override in config.overrides),
        ]
    )


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
        *([f"--storage={config.disk}"] if config.disk else []),
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
    if config.disk:
        disk = f"projects/{config.project}/zones/{config.zone}/disks/{config.disk}"
        argv.append(f"--data-disk=source={disk},mode=read-write")
    return argv


def delete(config: Launch) -> list[str]:
    """Returns the command that deletes the queued resource and its TPU."""
    return [*_queued("delete"), config.name, *_gcloud_flags(config), "--force", "--quiet"]


def start(config: Launch) -> list[str]:
    """Returns the command that starts training in a container on every host.

    Hosts whose container is running are left alone. The container survives the connection that
    started it, and its log survives the container's end.
    """
    image = config.image or BASE_IMAGE
    run = [
        *("sudo", "docker", "run", "--detach", f"--name={config.name}"),
        *("--privileged", "--net=host", "--shm-size=16g"),  # required for TPU access
        f"--stop-timeout={GRACE_S}",
        "--env=PYTHONUNBUFFERED=1",
        *([f"--volume={config.mount}:{config.mount}"] if config.disk else []),
        *(image, "bash", "-c", training(config)),
    ]
    steps = [_mount(config)] if config.disk else []
    registry = image.split("/")[0]
    if registry.endswith(("docker.pkg.dev", "gcr.io")):
        steps.append(f"sudo gcloud auth configure-docker {registry} --quiet")
    # `docker rm --force` would kill running training, which `docker stop` lets save.
    steps.append(
        f"if sudo docker ps --format={{{{.Names}}}} | grep -qx {config.name};"
        f" then echo {config.name} is already running;"
        f" else sudo docker rm {config.name}; {shlex.join(run)}; fi"
    )
    return _on_all_hosts(config, " && ".join(steps))


def follow(config: Launch) -> list[str]:
    """Returns the command that prints the training log and exits with training's exit code.

    It can be interrupted and run again.
    """
    logs = f"sudo docker logs --follow --tail=1000 {config.name}"
    # Two steps, because `exit` without a number would exit with 2, the code for wrong usage.
    return _on_all_hosts(config, f"{logs}; code=$(sudo docker wait {config.name}) && exit $code")


def plan(config: Launch) -> list[tuple[str, list[str]]]:
    """Returns all commands that the launch may run, each with a description of when it runs.

    Not for jobset, whose manifest `kubectl` applies.
    """
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
    """Returns the shell line that mounts the disk unless it is mounted."""
    device = shlex.quote(config.disk_device)
    mount = (
        f"sudo mkdir -p {config.mount} && sudo mount -o discard,defaults {device} {config.mount}"
    )
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
