"""Commands in processes of their own, forked off one that has imported everything: 0.3 s for 30 s.

`served` returns a command for `subprocess` or a shell. Its process hands its streams, folder,
environment and arguments to a fork of a server, sends on signals that it gets, and ends as the
fork ends. The server, one for a run of the tests, has done nothing but to import (which compiles
UMAP) and has one thread, so that a fork of it is what a new process is after the same imports; its
hashes are seeded otherwise than those of tests.
Where imports, what is set before them, closed streams or ``-m`` matter, start Python itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from importlib import import_module

RUN = "from dra_scvi.cli import main; main()"
LIBRARIES = ("igraph", "leidenalg", "scanpy", "scvi.model", "sklearn.cluster", "umap")


def served(*args: object, code: str = RUN) -> list[str]:
    """Return a command that runs the program, or other code, with these arguments."""
    from filelock import FileLock  # which the process that asks has not: it starts with nothing

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    user = os.getppid() if run else os.getpid()  # the server ends with this process
    path = os.path.join(tempfile.gettempdir(), f"served-{run or user}")
    root = os.path.dirname(os.path.dirname(__file__))
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", root)])
    alone = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    with FileLock(f"{path}.lock"):
        if not os.path.exists(path):
            server = subprocess.Popen(
                [sys.executable, __file__, "serve", path, str(user)],
                env={**os.environ, **alone, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n", "the server of commands did not start"
            server.returncode = 0  # nobody waits for it
    return [sys.executable, "-IS", __file__, "ask", path, code, *map(str, args)]


def ask(path: str, code: str, *args: str) -> None:
    """Have the server run some code, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        message = json.dumps([code, args, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(message).to_bytes(4)], [0, 1, 2])
        server.sendall(message)
        os.closerange(0, 3)  # whoever reads waits for the fork alone
        status = int(server.makefile().readline() or signal.SIGKILL)
    if number := os.WIFSIGNALED(status) and os.WTERMSIG(status):
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def serve(path: str, user: str) -> None:
    """Import everything, then fork for every command; return in the forks."""
    found = pkgutil.walk_packages(import_module("dra_scvi").__path__, "dra_scvi.")
    for name in (*LIBRARIES, *(module.name for module in found)):
        if name != "dra_scvi.__main__":
            import_module(name)
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) == 1
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the first forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"ready\n")
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(int(user), 0)  # is it there?
                if select.select([listener], [], [], 1)[0]:
                    client = listener.accept()[0]
                    if not os.fork():
                        listener.close()
                        return attend(client)
                    client.close()
    for name in (path, f"{path}.lock"):
        os.remove(name)
    os._exit(0)


def attend(client: socket.socket) -> None:
    """Fork once more, and run the code in the fork; tell its client how that ended."""
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        code, args, folder, environment = json.loads(file.read(int.from_bytes(size)))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        for stream in (0, 1, 2, *streams):
            os.close(stream)

        def send_signals() -> None:
            while True:  # a client that is gone takes its fork along
                os.kill(child, (client.recv(1) or bytes([signal.SIGKILL]))[0])

        threading.Thread(target=send_signals, daemon=True).start()
        client.sendall(b"%d\n" % os.waitpid(child, 0)[1])
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = ["-c", *args], ""
    main = sys.modules["__main__"] = type(sys)("__main__")
    exec(compile(code, "<string>", "exec"), vars(main))


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
