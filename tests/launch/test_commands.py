import os
import shlex
import subprocess

import pytest

from experiments import train
from experiments.launch import commands
from stunet.errors import UserError
from tests.launch.examples import example

CHECKOUT = {"repository": "https://example.org/me/stunet.git", "revision": "4f2a"}
TRAIN = [
    *("env", "JAX_COORDINATOR_PORT=8476", "python", "-m", "experiments.train"),
    "--config=experiments/configs/tiny_t2i.py",
    "--workdir=gs://my-bucket/runs/tiny_t2i",
    "--cluster=auto",
    "--config.total_steps=7500",
    '--config.sample_prompts=("a red circle", "a blue star")',
]
WHERE = ["--project=my-project", "--zone=us-west4-a"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "tiny-t2i", *WHERE, "--worker=all"]


def test_training_and_launcher_agree_on_the_exit_code_of_a_preemption():
    assert train.PREEMPTED == commands.PREEMPTED == 75


def test_xpk():
    config = example("xpk")
    where = ["--cluster=my-cluster", "--project=my-project", "--zone=us-east5-a"]
    assert commands.xpk_create(config) == [
        *("xpk", "workload", "create", "--workload=tiny-t2i", *where),
        *("--tpu-type=v6e-4", "--num-slices=1"),
        "--docker-image=us-east5-docker.pkg.dev/my-project/stunet/stunet:1",
        *("--max-restarts=100", "--restart-on-exit-codes=75"),
        "--termination-grace-period-seconds=300",
        f"--command=exec {shlex.join(TRAIN)}",
    ]
    wait = "--wait-for-job-completion=tiny-t2i"
    assert commands.xpk_wait(config) == ["xpk", "workload", "list", wait, *where]


def test_xpk_mounts_a_storage():
    argv = commands.xpk_create(example("xpk", workdir="disk://my-disk/runs/x"))
    assert "--storage=my-disk" in argv
    assert "--workdir=/mnt/my-disk/runs/x" in argv[-1]


def test_xpk_takes_a_checkout_too():
    argv = commands.xpk_create(example("xpk", image="", checkout=CHECKOUT, num_slices=2))
    assert "--docker-image=python:3.12" in argv
    assert "--num-slices=2" in argv
    assert argv[-1].startswith("--command=git clone --quiet https://example.org/me/stunet.git stu")


def test_queued_resources():
    config = example("queued_resources")
    assert commands.state(config) == [
        *(*QUEUED, "list", *WHERE, "--filter=name~/tiny-t2i$", "--format=value(state.state)")
    ]
    assert commands.create(config) == [
        *(*QUEUED, "create", "tiny-t2i", *WHERE, "--node-id=tiny-t2i"),
        *("--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    assert commands.delete(config) == [*QUEUED, "delete", "tiny-t2i", *WHERE, "--force", "--quiet"]
    assert commands.follow(config) == [
        *SSH,
        "--command=sudo docker logs --follow --tail=1000 tiny-t2i; "
        "code=$(sudo docker wait tiny-t2i) && exit $code",
    ]


def test_disk():
    config = example("queued_resources", workdir="disk://my-disk/runs/x", spot=False)
    assert commands.create(config)[-2:] == [
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--data-disk=source=projects/my-project/zones/us-west4-a/disks/my-disk,mode=read-write",
    ]


@pytest.fixture
def host(tmp_path):
    """Returns run(script, ...), which runs a script with fake programs.

    It returns the exit code and the calls of sudo."""
    calls = tmp_path / "calls"

    def run(script, mounted=True, running="", **fails):
        programs = {
            "mountpoint": f"exit {int(not mounted)}",
            # Writes one call per line with tabs between arguments; `docker ps` prints `running`.
            "sudo": f"(IFS='\t'; echo \"$*\" >> {calls})\n"
            f'[ "$2" = ps ] && echo "{running}"\n'
            + "".join(f'[ "$1" = {name} ] && exit {code}\n' for name, code in fails.items())
            + "exit 0",
        }
        for name, lines in programs.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
            (tmp_path / name).chmod(0o755)
        calls.write_text("")
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        # Like ssh, which joins the words by spaces.
        code = subprocess.run(["bash", "-c", " ".join(script.split(" "))], env=env).returncode
        return code, [line.split("\t") for line in calls.read_text().splitlines()]

    return run


def script_of(argv):
    assert argv[:-1] == SSH
    return argv[-1].removeprefix("--command=")


def test_start_runs_the_container(host):
    config = example("queued_resources", image="eu-docker.pkg.dev/p/r/stunet:1", checkout=None)
    code, calls = host(script_of(commands.start(config)), mounted=False)
    assert code == 0
    assert calls == [
        ["gcloud", "auth", "configure-docker", "eu-docker.pkg.dev", "--quiet"],
        ["docker", "ps", "--format={{.Names}}"],
        ["docker", "rm", "tiny-t2i"],
        [
            *("docker", "run", "--detach", "--name=tiny-t2i", "--privileged", "--net=host"),
            *("--shm-size=16g", "--stop-timeout=300", "--env=PYTHONUNBUFFERED=1"),
            *("eu-docker.pkg.dev/p/r/stunet:1", "bash", "-c", f"exec {shlex.join(TRAIN)}"),
        ],
    ]


def test_start_mounts_a_disk(host):
    config = example("queued_resources", workdir="disk://my-disk/x")
    code, calls = host(script_of(commands.start(config)), mounted=False)
    assert code == 0
    assert calls[:2] == [
        ["mkdir", "-p", "/mnt/my-disk"],
        ["mount", "-o", "discard,defaults", "/dev/sdb", "/mnt/my-disk"],
    ]
    assert "--volume=/mnt/my-disk:/mnt/my-disk" in calls[-1]
    assert "--workdir=/mnt/my-disk/x" in calls[-1][-1]


def test_start_does_not_train_if_mounting_fails(host):
    config = example("queued_resources", workdir="disk://my-disk/x")
    code, calls = host(script_of(commands.start(config)), mounted=False, mount=1)
    assert code == 1
    assert calls[-1][0] == "mount"


def test_start_leaves_a_running_container_alone(host):
    script = script_of(commands.start(example("queued_resources")))
    assert host(script, running="tiny-t2i") == (0, [["docker", "ps", "--format={{.Names}}"]])
    assert host(script, running="tiny-t2i-2")[1][-1][:2] == ["docker", "run"]


@pytest.mark.parametrize("fails", ["nothing", "clone", "checkout", "install"])
def test_training_in_a_checkout(tmp_path, fails):
    """Fake git and pip fail at the step `fails`; fake python prints its arguments."""
    step = f'[ "$1" = clone ] && mkdir stunet\n[ "$1" != {fails} ] || exit 128'
    programs = {"git": step, "pip": step, "python": 'pwd; printf "%s\\n" "$@"; exit 75'}
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    override = "sample_prompts=('it\\'s a $HOME star',)"
    config = example("queued_resources", checkout=CHECKOUT, overrides=(override,))
    ran = subprocess.run(
        ["bash", "-c", commands.training(config)],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    if fails == "nothing":
        assert ran.returncode == 75
        expected = [str(tmp_path / "stunet"), *TRAIN[3:8], f"--config.{override}"]
        assert ran.stdout.splitlines() == expected
    else:
        assert (ran.returncode, ran.stdout) == (1, "")  # xpk would restart git's 128


BAD = [
    ({"launcher": "slurm"}, "launcher.*slurm.*'jobset', 'queued_resources', 'xpk'"),
    ({"zones": "z"}, "'zones'.*'zone'"),
    ({"project": ""}, "project: .*'queued_resources'"),
    ({"runtime_version": ""}, "runtime_version: .*'queued_resources'"),
    ({"cluster": "c"}, "cluster: 'c', .*''.*'queued_resources'"),
    ({"num_slices": 2}, "num_slices: 2, .*1.*'queued_resources'"),
    ({"image": "stunet:1"}, "image, checkout: both"),
    ({"checkout": None}, "image, checkout: neither"),
    ({"checkout": {"repository": "r"}}, "config.*checkout.*revision"),
    ({"name": "Tiny_T2I"}, "name: 'Tiny_T2I', .*40"),
    ({"name": "a" * 41}, "name: 'a{41}', .*40"),
    ({"workdir": "runs/tiny"}, "workdir: 'runs/tiny', .*gs://BUCKET/FOLDER.*disk://DISK/FOLDER"),
    ({"workdir": "gs://bucket"}, "workdir: 'gs://bucket', .*gs://BUCKET/FOLDER"),
    ({"overrides": ["total_steps"]}, "overrides: 'total_steps', .*NAME=VALUE"),
    ({"overrides": ["a='\n'"]}, "overrides: .*NAME=VALUE"),
    ({"max_failures": 0}, "max_failures: 0, .*1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_config(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        example("queued_resources", **changes)
    assert "\n" not in str(caught.value)


def test_bad_config_of_xpk():
    with pytest.raises(UserError, match="cluster: .*'xpk'"):
        example("xpk", cluster="")
    with pytest.raises(UserError, match="spot: True, .*False.*'xpk'"):
        example("xpk", spot=True)
