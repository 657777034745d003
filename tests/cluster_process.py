"""One process of a cluster, for tests: `python -m tests.cluster_process WHAT CLUSTER`."""

import os
import sys
import time

from stunet import cluster, signals
from stunet.errors import UserError, run_command


def exchange() -> None:
    """Prints what every function returns or raises."""
    first = cluster.is_first_process()
    name = "first" if first else "second"
    cluster.run_on_first_process(lambda: time.sleep(2))
    print(cluster.gather_texts(f"ä {name}\0\n"), cluster.share_text(name))
    print(cluster.agree(lambda: name), cluster.all_processes_agree(True))
    print(cluster.all_processes_agree(first))

    def fail(error: Exception) -> None:
        if first:
            raise error

    for run in (cluster.agree, cluster.run_on_first_process):
        for error in (UserError("field: 1, expected 2"), KeyError("lost\nkey")):
            try:
                run(lambda error=error: fail(error))
            except Exception as raised:
                print(type(raised).__name__, raised)
    print(cluster._client().key_value_dir_get("stunet/0"))  # deleted since
    cluster.leave_together()


def die() -> None:
    """Ends the second process while the first one waits for it."""
    if not cluster.is_first_process():
        os._exit(9)
    cluster.gather_texts("")


def main(what: str, address: str) -> None:
    """Joins the cluster and runs one of the functions above."""
    cluster.JOIN_S, cluster.HEARTBEAT_S = (3, 100) if what == "join" else (60, 5)
    cluster.join_cluster(address)
    {"join": lambda: None, "exchange": exchange, "die": die}[what]()


if __name__ == "__main__":
    signals.watch("test")  # as programs do
    sys.exit(run_command(lambda: main(*sys.argv[1:]), "test"))
