"""multiprocessing.managers over TCP: `manager.py serve|fill|count ADDRESS PORT [PROCESSES]`."""

import multiprocessing
import sys
from multiprocessing.managers import BaseManager

shared: dict = {}


class Manager(BaseManager):
    pass


def reach() -> Manager:
    manager = Manager((sys.argv[2], int(sys.argv[3])), b"key")
    manager.connect()
    return manager


def put(number: int) -> None:
    reach().shared().update({number: number * number})


if sys.argv[1] == "serve":
    Manager.register("shared", lambda: shared)
    Manager((sys.argv[2], int(sys.argv[3])), b"key").get_server().serve_forever()
else:
    Manager.register("shared")
    if sys.argv[1] == "fill":
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=put, args=(n,)) for n in range(int(sys.argv[4]))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print(len(reach().shared().items()))
