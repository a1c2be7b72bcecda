"""Warm starts: notebooks executed in processes forked from one that has the slow libraries imported already.

Starting a kernel and importing PyTorch, Transformers, MONAI and PEFT takes longer than a small cell trains.
Here one process imports them once and does nothing else: it makes no tensor, draws no random number, starts
no thread and touches no GPU, so that a fork of it is as good as a new process. For each notebook it forks a
worker, which runs `echovlsm execute` and, before anything else, forks the process that becomes the
kernel. The package's own modules are not imported beforehand: every kernel gets them as they are on disk.

    keep = warm.start()       # from now on every `echovlsm execute` below this process starts warm

The process ends with the one that started it. Without it, on anything but Linux, and where there may be a GPU
(CUDA does not survive a fork), notebooks start in the ordinary way.

It leans on two things that are no public interface: how `jupyter_client` 8 launches a kernel
(`AsyncKernelManager._async_launch_kernel`) and where it keeps the process (`provisioner.process`). Where the
first is not there, a notebook starts in the ordinary way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOCKET = "ECHOVLSM_WARM"
"""Environment variable: path of the socket at which the warm process listens."""

LIBRARIES: tuple[str, ...] = (
    "torch.nn.functional",
    "torch.utils.data",
    "accelerate.utils",
    "transformers.models.clipseg.modeling_clipseg",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.vit.image_processing_pil_vit",
    "monai.losses",
    "monai.metrics",
    "peft",
    "pandas.io.formats.style",
    "pyarrow.parquet",
    "scipy.ndimage",
    "scipy.stats",
    "skimage.measure",
    "nibabel",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "jsonschema",
    "papermill.engines",
    "jupyter_client.asynchronous",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "typer",
)
_SERVE = "import sys; from echovlsm.study import warm; sys.exit(warm.serve(sys.argv[1], sys.argv[2:]))"
_GPU = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def possible() -> bool:
    """Whether notebooks can start warm on this machine."""
    return sys.platform == "linux" and not any(Path(node).exists() for node in _GPU)


def start(libraries: Sequence[str] = LIBRARIES) -> subprocess.Popen[bytes] | None:
    """Start the warm process and say so in this process's environment; keep what it returns.

    It imports `libraries`, and ends when what is returned is dropped or its `stdin` closed, and with the
    calling process. None where warm starts are not possible.
    """
    if not possible():
        return None
    path = Path(tempfile.mkdtemp(prefix="echovlsm-"), "warm")
    os.environ[SOCKET] = str(path)
    command = [sys.executable, "-c", _SERVE, str(path), *libraries]
    # Figures go into the notebook, and Arrow's allocator gets no thread.
    settings = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment = os.environ | settings
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    limit = time.monotonic() + 20  # until it listens, a command would find nobody and start cold
    while not path.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    return process


def delegate(arguments: Sequence[str]) -> int | None:
    """Let the warm process run ``echovlsm execute``; its exit status, or None without a warm process."""
    path = os.environ.get(SOCKET)
    if not path:
        return None
    job = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
    data = json.dumps(job).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [len(data).to_bytes(8, "big")], [1, 2])
            connection.sendall(data)
            taken = connection.recv(1)
        except OSError:
            taken = b""
        if not taken:
            return None
        status = connection.recv(1)
    if not status:
        print("echovlsm execute: the process that executed the notebook was killed", file=sys.stderr)
    return status[0] if status else 1


def serve(path: str, libraries: Sequence[str]) -> int:
    """Import, listen, and fork a worker for each connection, until stdin is closed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(256)  # whoever connects before the imports are through waits for them
        os.rename(f"{path}.new", path)  # it appears when it listens
        for name in libraries:
            importlib.import_module(name)
        if len(os.listdir("/proc/self/task")) > 1:
            print("warm starts: a library started a thread on import; starting cold", file=sys.stderr)
            return 1
        gc.collect()
        gc.freeze()  # the collector would otherwise touch, and so copy, every page in every child
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _work(connection)
            connection.close()
    shutil.rmtree(Path(path).parent, ignore_errors=True)
    return 0


def _work(connection: socket.socket) -> int:
    """In a worker: take the job, fork the future kernel, execute the notebook, and report."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
    job = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    with open(os.devnull) as nothing:
        for target, source in enumerate((nothing.fileno(), *descriptors)):
            os.dup2(source, target)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update({name: value for name, value in job["environment"].items() if name != SOCKET})
    receive, send = os.pipe()
    kernel = os.fork()
    if kernel == 0:
        connection.close()
        os.close(send)
        return _become_kernel(receive)
    os.close(receive)
    connection.send(b"y")
    threading.Thread(target=_end_with, args=(connection, kernel), daemon=True).start()
    _Waiting.kernel = _Waiting(kernel, send)
    status = 1
    try:
        sys.argv = ["echovlsm", *job["arguments"]]
        runpy.run_module("echovlsm", run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([status & 255]))
    return status


def _end_with(connection: socket.socket, kernel: int) -> None:
    """End worker and kernel when the command that asked for them is gone."""
    with contextlib.suppress(OSError):
        if connection.recv(1) == b"":
            os.killpg(kernel, signal.SIGKILL)
            os._exit(1)


def _become_kernel(receive: int) -> int:
    """In the future kernel: wait for the command, and be what it would have started."""
    os.setsid()
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    if not text:
        return 0
    job = json.loads(text)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    from ipykernel.kernelapp import IPKernelApp

    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # otherwise every kernel would begin with the parent's numbers
    if "torch" in sys.modules:
        with contextlib.suppress(KeyError, ValueError):
            sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # The application read its parent's id from the environment when it was imported, long ago.
    arguments = [*job["arguments"], f"--IPKernelApp.parent_handle={os.getppid()}"]
    sys.argv = ["ipykernel_launcher", *arguments]
    IPKernelApp.launch_instance(argv=arguments)
    return 0


class _Waiting:
    """The process that becomes the kernel, with the part of Popen that `jupyter_client` uses."""

    kernel: _Waiting | None = None
    stdin = stdout = stderr = None

    def __init__(self, pid: int, send: int) -> None:
        self.pid, self.returncode, self._send = pid, None, send

    def launch(self, arguments: Sequence[str], environment: dict[str, str], folder: str) -> None:
        """Let it become the kernel."""
        job = {"arguments": list(arguments), "environment": environment, "folder": folder}
        with os.fdopen(self._send, "w") as pipe:
            json.dump(job, pipe)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Exit status, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        """Exit status, once it has ended."""
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def kernel_options() -> dict[str, Any]:
    """What Papermill is told so that the kernel is the waiting process; nothing after an ordinary start."""
    waiting, _Waiting.kernel = _Waiting.kernel, None
    if waiting is None:
        return {}
    from jupyter_client import AsyncKernelManager

    if not hasattr(AsyncKernelManager, "_async_launch_kernel"):
        return {}

    class WarmKernelManager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            ours = os.path.samefile(kernel_cmd[0], sys.executable) and "ipykernel_launcher" in kernel_cmd
            if not ours or waiting.returncode is not None or self.provisioner.process is not None:
                return await super()._async_launch_kernel(kernel_cmd, **options)
            environment = options.get("env") or dict(os.environ)
            environment["JPY_PARENT_PID"] = str(os.getpid())
            folder = os.fspath(options.get("cwd") or Path.cwd())
            waiting.launch(kernel_cmd[kernel_cmd.index("ipykernel_launcher") + 1 :], environment, folder)
            self.provisioner.process = waiting
            self.provisioner.pid = self.provisioner.pgid = waiting.pid
            self.provisioner.cwd = folder

    return {"kernel_manager_class": WarmKernelManager}
