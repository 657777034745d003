import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from experiments.launch.commands import training
from experiments.launch.config import ACCELERATORS
from experiments.launch.jobset import jobset, kueue_queue
from stunet.errors import UserError
from tests.launch.examples import example

SCHEMAS = yaml.safe_load((Path(__file__).parent / "schemas.yaml").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def errors(value, schema, where):
    """Returns what is wrong with a value by a schema of Kubernetes, which refuses other fields."""
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if type(value) not in [TYPES[name] for name in names]:
        return [f"{where}: {value!r} is no {names}"]
    found = []
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            found.append(f"{where}: {value!r} does not match {schema['pattern']}")
        if value not in schema.get("enum", [value]):
            found.append(f"{where}: {value!r} is none of {schema['enum']}")
        if len(value) > schema.get("maxLength", len(value)):
            found.append(f"{where}: {value!r} is too long")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for index, item in enumerate(value):
            found += errors(item, schema["items"], f"{where}[{index}]")
    if isinstance(value, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        found += [
            f"{where}.{name}: missing" for name in schema.get("required", ()) if name not in value
        ]
        if len(value) > schema.get("maxProperties", len(value)):
            found.append(f"{where}: {len(value)} fields")
        for name, item in value.items():
            field = fields.get(name, others)
            path = f"{where}.{name}"
            found += errors(item, field, path) if field else [f"{path}: unknown field"]
    return found


def check(document):
    """Checks a manifest, as it arrives at the cluster, by its published schema."""
    document = yaml.safe_load(yaml.safe_dump(document))
    schema = SCHEMAS[document.pop("kind")]
    assert document.pop("apiVersion") == schema["apiVersion"]
    assert errors(document, schema, "") == []


def pod_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["replicas"], job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_the_check_finds_errors():
    manifest = jobset(example("jobset"))
    manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"
    manifest["spec"]["suspended"] = True
    _, job, pod = pod_of(manifest)
    job["completions"] = "16"
    del pod["containers"][0]["name"]
    found = errors(manifest, SCHEMAS["JobSet"] | {"required": ["status"]}, "")
    wrong = ("status", "action", "suspended", "completions", "name")
    assert [name for name in wrong if not any(f"{name}:" in line for line in found)] == []
    assert len(found) == len(wrong) + 2  # apiVersion and kind


@pytest.mark.parametrize(
    ("changes", "slices", "hosts", "chips", "accelerator"),
    [
        ({}, 2, 16, 4, "tpu-v5p-slice"),
        ({"tpu_type": "v6e", "topology": "1x1", "num_slices": 1}, 1, 1, 1, "tpu-v6e-slice"),
        ({"tpu_type": "v6e", "topology": "2x4", "spot": True}, 2, 2, 4, "tpu-v6e-slice"),
        ({"tpu_type": "v5e", "topology": "16x16"}, 2, 64, 4, "tpu-v5-lite-podslice"),
        ({"tpu_type": "v4", "topology": "2x2x1", "num_slices": 1}, 1, 1, 4, "tpu-v4-podslice"),
        ({"tpu_type": "tpu7x", "topology": "2x2x4"}, 2, 4, 4, "tpu7x"),
    ],
)
def test_a_pod_per_host_and_a_job_per_slice(changes, slices, hosts, chips, accelerator):
    config = example("jobset", **changes)
    manifest = jobset(config)
    check(manifest)
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "my-queue"}
    replicas, job, pod = pod_of(manifest)
    assert (replicas, job["parallelism"], job["completions"]) == (slices, hosts, hosts)
    labels = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": config.topology,
    }
    if config.spot:
        labels["cloud.google.com/gke-spot"] = "true"
    assert pod["nodeSelector"] == labels
    assert [t["key"] for t in pod["tolerations"]] == [
        "google.com/tpu",
        *(["cloud.google.com/gke-spot"] if config.spot else []),
    ]
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}
    assert container["command"][-1].endswith(training(config))
    assert ("getent" in container["command"][-1]) == (slices * hosts > 1)


def test_exit_codes():
    """Exit code 2 ends the JobSet. Any other fails the Job, which restarts the JobSet."""
    manifest = jobset(example("jobset", max_restarts=7))
    _, job, pod = pod_of(manifest)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [2, 126, 127],
    }
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 300


@pytest.mark.parametrize("chip", ACCELERATORS)
def test_queue(chip):
    topology = {2: "4x4", 3: "2x2x4"}[ACCELERATORS[chip][1]]
    documents = kueue_queue(example("jobset", tpu_type=chip, topology=topology), num_slices=3)
    for document in documents:
        check(document)
    flavor, cluster_queue, queue = documents
    assert flavor["spec"]["nodeLabels"]["cloud.google.com/gke-tpu-topology"] == topology
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (quota,) = group["flavors"]
    assert quota["name"] == flavor["metadata"]["name"]
    assert quota["resources"] == [{"name": "google.com/tpu", "nominalQuota": 48}]
    assert queue["metadata"]["name"] == "my-queue"
    assert queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]


@pytest.fixture
def start(tmp_path):
    """Returns start(config, python, getent): runs a container's command with fake programs."""

    def run(config, python, getent="exit 0"):
        for name, lines in {"python": python, "getent": getent, "sleep": "exit 0"}.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
            (tmp_path / name).chmod(0o755)
        command = pod_of(jobset(config))[2]["containers"][0]["command"]
        command = [re.sub(r"\$\$", "$", word) for word in command]  # as Kubernetes does
        return subprocess.Popen(
            command,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    return run


def test_training_starts_when_all_pods_have_an_address(start, tmp_path):
    calls = tmp_path / "calls"
    # The second call fails: the pod has no address yet.
    getent = f'echo "$@" >> {calls}; [ $(wc -l < {calls}) != 2 ]'
    config = example("jobset", topology="2x2x2", check=False, overrides=("a='$$(B) $HOME'",))
    process = start(config, 'printf "%s\\n" "$JAX_COORDINATOR_PORT" "$@"', getent)
    lines = process.communicate(timeout=20)[0].splitlines()
    pods = [f"hosts base-128-slice-{i}-{j}.base-128" for i in range(2) for j in range(2)]
    assert calls.read_text().splitlines() == [pods[0], pods[1], *pods[1:]]
    assert lines[:3] == ["8476", "-m", "experiments.train"]
    assert "--workdir=gs://my-bucket/runs/base_128" in lines
    assert lines[-1] == "--config.a='$$(B) $HOME'"


def test_sigterm_reaches_training(start):
    config = example("jobset", check=False, topology="2x2x1", num_slices=1)
    process = start(
        config, "trap 'exit 75' TERM; echo ready; while :; do read -t 0.1 < /dev/zero; done"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75


def test_sigterm_ends_the_wait_for_other_pods(start, tmp_path):
    process = start(example("jobset"), "exit 1", f"touch {tmp_path}/waiting; exit 2")
    while not (tmp_path / "waiting").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


@pytest.mark.parametrize(("code", "ran"), [(0, ["pod_check", "train"]), (2, ["pod_check"])])
def test_the_check_runs_first(start, code, ran):
    python = f'echo "$2"; [ "$2" != experiments.pod_check ] || exit {code}'
    process = start(example("jobset"), python)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert out.split() == [f"experiments.{name}" for name in ran]
    check_line, train_line = training(example("jobset")).split(" || exit $?; exec ")
    assert shlex.split(check_line.replace("pod_check", "train")) == shlex.split(train_line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue": ""}, "queue: .*'jobset'"),
        ({"queue": "My_Queue"}, "queue: 'My_Queue', .*LocalQueue"),
        ({"tpu_type": "v6e-4"}, "tpu_type: 'v6e-4', .*v5p"),
        ({"topology": "4x4"}, "topology: '4x4', .*3.*'2x2x2' for v5p"),
        ({"topology": "1x2x3"}, "topology: '1x2x3' has 6 chips, .*4"),
        ({"topology": "2x2x1"}, "topology: '2x2x1', .*one host, .*4 chips for num_slices 2"),
        ({"workdir": "disk://d/x"}, "workdir: 'disk://d/x', .*gs://"),
        ({"project": "p"}, "project: 'p', .*''.*'jobset'"),
        ({"max_restarts": 0}, "max_restarts: 0, .*1"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        example("jobset", **changes)
    assert "\n" not in str(caught.value)
