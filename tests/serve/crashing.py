"""A program that starts servers which may be killed: it loads everything once, and forks one for every line it reads.

Knows: how the parts of a server are put together. Does not know: what is asked of it.

    python crashing.py FAMILY       then lines on stdin, [DATA, SECONDS BETWEEN SAVED STATES]; each is answered by
                                    `PID PORT` when the server listens
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch

from arvid.pipeline import Pipeline, load
from arvid.serve.app import Server, Settings, build
from arvid.serve.limits import Limits
from arvid.serve.place import Place


def main(family: Path) -> None:
    """Read lines until there are no more."""
    torch.set_num_threads(1)
    pipeline = Pipeline(load(family))
    for line in sys.stdin:
        data, save_seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            serve(pipeline, Path(data), save_seconds)
        os.waitpid(child, 0)


def serve(pipeline: Pipeline, data: Path, save_seconds: float) -> None:
    """Be a server until the end."""
    place = Place(data)
    place.take()
    limits = Limits(save_seconds=save_seconds, attempts=1000)
    server = Server(build(Settings(lambda: pipeline, place, limits=limits)), "127.0.0.1", 0)

    def tell() -> None:
        while not server.started:
            time.sleep(0.005)
        print(os.getpid(), server.servers[0].sockets[0].getsockname()[1], flush=True)

    threading.Thread(target=tell, daemon=True).start()
    server.run()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
