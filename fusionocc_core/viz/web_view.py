"""The viewer in a browser: a data server, and a page of our own that asks the internet for nothing.

rerun's page loads a typeface and a list of examples from the internet and reports usage; on a robot without a network
that fills the console with errors, elsewhere it tells others. Ours takes the viewer itself, which lies inside the rerun
program, and nothing else. Both servers listen on the loopback interface unless told otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.1
VIEWER_FILES = {"re_viewer.js": "text/javascript", "re_viewer_bg.wasm": "application/wasm"}
MEMORY_LIMIT = "25%"
"""Of what the data server keeps for browsers that come later; the oldest goes first."""


@dataclass(frozen=True, kw_only=True)
class WebView:
    """Two servers that run."""

    url: str
    """For the browser."""
    data_url: str
    """Where a recording connects to."""


@contextlib.contextmanager
def web_view(*, bind: str = LOOPBACK, port: int = 9090, data_port: int = 9876) -> Iterator[WebView]:
    """Serve until the end of the block.

    Args:
        bind: address to listen on; 0.0.0.0 for all of this machine's.
        port: of the page; 0 takes a free one.
        data_port: of the data; 0 takes a free one.

    Raises:
        ValueError: an address that is not of this machine.
        OSError: a port is taken.
        ChildProcessError: rerun's program does not start; with what it said.
    """
    port, data_port = _checked_port(bind, port, "--port"), _checked_port(bind, data_port, "--data-port")
    with tempfile.TemporaryDirectory(prefix="fusionocc-view-") as scratch:
        folder = Path(scratch)
        viewer = _viewer_files(folder)
        page = _page(data_port)
        served = {"": ("text/html; charset=utf-8", page)}
        served.update({name: (kind, viewer[name]) for name, kind in VIEWER_FILES.items()})
        with _rerun(folder, ["--serve-grpc"], bind, data_port), _pages(bind, port, served):
            host = LOOPBACK if bind == "0.0.0.0" else bind
            yield WebView(url=f"http://{host}:{port}/", data_url=f"rerun+http://{host}:{data_port}/proxy")


def _page(data_port: int) -> bytes:
    text = (files("fusionocc_core.viz") / "web_view.html").read_text(encoding="utf-8")
    # WebGL everywhere: WebGPU does not start on machines without a GPU.
    settings = json.dumps({"data_port": data_port, "renderer": "webgl"})
    return text.replace("{{settings}}", settings).encode()


def _checked_port(bind: str, port: int, option: str) -> int:
    """The port, or a free one for 0.

    Raises:
        ValueError, OSError: the address or the port cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"{option} {port}: expected 0 (any that is free) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise OSError(
                    f"{option} {port}: {error.strerror}; choose another, or 0 for any that is free"
                ) from error
            raise ValueError(
                f"--bind {bind}: {error.strerror or error}; expected an address of this machine"
            ) from error
        return int(probe.getsockname()[1])


def _viewer_files(folder: Path) -> dict[str, bytes]:
    """The viewer for browsers out of the rerun program, which hands it out only over HTTP."""
    data_port, port = _checked_port(LOOPBACK, 0, "port"), _checked_port(LOOPBACK, 0, "port")
    arguments = ["--serve-web", "--web-viewer-port", str(port)]
    with _rerun(folder, arguments, LOOPBACK, data_port):
        _wait_for_port(LOOPBACK, port, None)
        return {name: _download(f"http://{LOOPBACK}:{port}/{name}") for name in VIEWER_FILES}


def _download(url: str) -> bytes:
    # Not through a proxy of the environment: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=START_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except urllib.error.URLError as error:
        raise ChildProcessError(f"rerun's program serves no viewer ({url}: {error}); reinstall rerun-sdk") from error


@contextlib.contextmanager
def _rerun(folder: Path, arguments: list[str], bind: str, data_port: int) -> Iterator[None]:
    """Rerun's program, until the end of the block."""
    log = folder / f"rerun-{data_port}.log"
    command = [sys.executable, "-m", "rerun_cli", *arguments, "--bind", bind, "--port", str(data_port)]
    command += ["--server-memory-limit", MEMORY_LIMIT]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_quiet_environment(folder),
            start_new_session=True,
        )
    try:
        _wait_for_port(LOOPBACK if bind == "0.0.0.0" else bind, data_port, (process, log))
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started: rerun's program is a child of the Python that starts it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            process.poll()  # reaps it, so that its group may become empty
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            time.sleep(POLL_S)


def _quiet_environment(folder: Path) -> dict[str, str]:
    """Rerun's settings in a folder of our own that switch its usage statistics off, whatever the user's say."""
    settings = folder / "rerun"
    settings.mkdir(exist_ok=True)
    path = settings / "analytics.json"
    content = {"analytics_enabled": False, "analytics_id": "", "metadata": {}}
    path.write_text(json.dumps({**content, "config_file_path": str(path), "data_dir_path": str(settings)}))
    return {**os.environ, "XDG_CONFIG_HOME": str(folder), "RUST_LOG": "warn"}


def _wait_for_port(host: str, port: int, child: tuple[subprocess.Popen[bytes], Path] | None) -> None:
    """Until somebody listens there.

    Raises:
        ChildProcessError: the child ended, or nobody does in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((host, port)) == 0:
                return
        said = child[1].read_text(errors="replace").strip()[-1000:] if child else ""
        if child and child[0].poll() is not None:
            raise ChildProcessError(f"rerun's program ended with exit code {child[0].returncode}: {said}")
        if time.monotonic() > deadline:
            raise ChildProcessError(f"rerun's program did not answer on {host}:{port} in {START_TIMEOUT_S:g} s: {said}")
        time.sleep(POLL_S)


@contextlib.contextmanager
def _pages(bind: str, port: int, served: dict[str, tuple[str, bytes]]) -> Iterator[None]:
    """A web server in a thread for a few things that are in memory."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server looks for
            found = served.get(self.path.split("?")[0].lstrip("/"))
            if found is None:
                self.send_error(404)
                return
            kind, content = found
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the reader left
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Say nothing of every request."""

    server = ThreadingHTTPServer((bind, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="web view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
