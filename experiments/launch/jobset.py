"""Builds the manifests for GKE clusters with JobSet and Kueue (docs/pods.md).

APIs: jobset.x-k8s.io/v1alpha2 and kueue.x-k8s.io/v1beta2. GKE sets the variables from which JAX
finds the other hosts (TPU_WORKER_HOSTNAMES, MEGASCALE_COORDINATOR_ADDRESS) in the pods of a JobSet.
"""

import re
from typing import Any

from experiments.launch.commands import BASE_IMAGE, GRACE_S, training
from experiments.launch.config import ACCELERATORS, CHIPS_PER_HOST, Launch

TPU = "google.com/tpu"
# Exit codes that a restart does not change: wrong usage or a diverged loss, and a container
# without the program. Others restart: 75 (saved after SIGTERM), those of killed containers, and 1,
# with which JAX ends if another host dies.
FINAL_EXIT_CODES = [2, 126, 127]


def jobset(config: Launch) -> dict[str, Any]:
    """Returns the JobSet of a launch: one pod per host, one Job per slice, restarted together."""
    hosts = max(1, config.chips // CHIPS_PER_HOST)
    chips = config.chips // hosts
    container = {
        "name": "stunet",
        "image": config.image or BASE_IMAGE,
        "command": ["bash", "-c", _script(config, hosts)],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "ports": [{"containerPort": 8471}],  # between the hosts of a slice
        "securityContext": {"privileged": True},  # required for TPU access
        "resources": {"limits": {TPU: chips}},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "hostNetwork": True,  # faster between slices
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": _node_labels(config),
        "tolerations": [{"key": key, "operator": "Exists"} for key in _taints(config)],
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # a failed pod fails its Job, because all hosts have to start together
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": container["name"],
                        "operator": "In",
                        "values": FINAL_EXIT_CODES,
                    },
                }
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": config.name,
            "labels": {"kueue.x-k8s.io/queue-name": config.queue},
            # One slice per node pool: GKE makes a multi-host slice a node pool of its own.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": config.max_restarts,
                "rules": [
                    {
                        "name": "finalExitCode",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {"name": "slice", "replicas": config.num_slices, "template": {"spec": job}}
            ],
        },
    }


def kueue_queue(config: Launch, num_slices: int) -> list[dict[str, Any]]:
    """Returns the Kueue objects of a queue that admits some slices of the config's TPU at a time.

    Args:
      config: The launch.
      num_slices: Quota in slices.
    """
    flavor = f"{config.tpu_type}-{config.topology}" + ("-spot" if config.spot else "")
    quota = {"name": TPU, "nominalQuota": num_slices * config.chips}
    flavors = [{"name": flavor, "resources": [quota]}]

    def document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": name}
        api = "kueue.x-k8s.io/v1beta2"
        return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}

    return [
        document("ResourceFlavor", flavor, {"nodeLabels": _node_labels(config)}),
        document(
            "ClusterQueue",
            config.queue,
            {
                "namespaceSelector": {},
                "resourceGroups": [{"coveredResources": [TPU], "flavors": flavors}],
            },
        ),
        document("LocalQueue", config.queue, {"clusterQueue": config.queue}),
    ]


def _script(config: Launch, hosts: int) -> str:
    """Returns the shell line of a container.

    After a preemption one slice may wait hours for new hosts. Training ends if the other processes
    are missing, so it starts once all pods have an address.
    """
    pods = f"{config.name}-slice-{{0..{config.num_slices - 1}}}-{{0..{hosts - 1}}}.{config.name}"
    wait = (
        f"for pod in {pods}; do until getent hosts $pod >/dev/null; do sleep 5; done; done"
        if config.num_slices * hosts > 1
        else ""
    )
    # The first process of a container ignores SIGTERM unless it handles it.
    script = f"trap 'exit 143' TERM; {training(config, before=wait)}"
    return re.sub(r"\$(?=[$(])", "$$", script)  # Kubernetes expands $(NAME) and $$


def _node_labels(config: Launch) -> dict[str, str]:
    labels = {
        "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[config.tpu_type][0],
        "cloud.google.com/gke-tpu-topology": config.topology,
    }
    return labels | ({"cloud.google.com/gke-spot": "true"} if config.spot else {})


def _taints(config: Launch) -> list[str]:
    return [TPU, *(["cloud.google.com/gke-spot"] if config.spot else [])]
