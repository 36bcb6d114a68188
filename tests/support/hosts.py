"""Hosts for tests: network namespaces on one bridge, each with a raylet, on links that can be cut.

    bridge phXXXX (10.213.N.254, the tests' own side)
      -- veth -- namespace phXXXX-h1 (10.213.N.1), with its own /tmp and /dev/shm

All hosts are removed afterwards. The processes of a host are found by its namespace, so that a whole host can
be ended. A test client needs no namespace, since it reaches every host over the bridge. This needs root and
iproute2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
HEAD_PORT = 6379
_SETTLE_SECONDS = 8.0
"""Time between the starts of two raylets on one machine. Of raylets that started at once, the later ones were
declared dead while they were starting."""
_START_SECONDS = 90.0
_COMMAND_SECONDS = 30.0
_GONE_SECONDS = 15.0
_BACKGROUND_NICENESS = 10


def why_not() -> str | None:
    """Return why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    probe = f"ph{secrets.token_hex(2)}"
    if (
        _try("ip", "netns", "add", probe) is not None
        or _try("ip", "link", "add", probe, "type", "bridge") is not None
    ):
        _try("ip", "netns", "del", probe)
        return "this machine does not let its root make network namespaces and bridges"
    _try("ip", "link", "del", probe)
    _try("ip", "netns", "del", probe)
    return None


@dataclass(kw_only=True, slots=True)
class Host:
    """One network namespace, and how to run processes in it."""

    name: str
    """The name: h1, h2 and so on."""
    namespace: str
    address: str
    folder: Path
    """The folder with the host's /tmp and the output of its processes."""
    link: str
    """The bridge's end of the host's link."""
    environment: dict[str, str]

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` on this host."""
        tmp = self.folder / "tmp"
        tmp.mkdir(parents=True, exist_ok=True)
        # The mount namespace belongs to this command, so other hosts do not see these mounts.
        mounts = f"mount --bind {shlex.quote(str(tmp))} /tmp && mount -t tmpfs tmpfs /dev/shm"
        line = f"{mounts} && cd {shlex.quote(str(ROOT))} && exec {shlex.join(words)}"
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", line]

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Run a command in the background. Its output goes to a file of this name in the host's folder."""
        with (self.folder / f"{name}.out").open("ab") as output:
            return subprocess.Popen(
                self.command(*words),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self, name: str) -> str:
        """Return what the command has written so far."""
        return (self.folder / f"{name}.out").read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Return all processes of this host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace],
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=True,
        )
        found = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def named(self, name: str) -> list[psutil.Process]:
        """Return the processes of this host whose program or title is `name`."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = process.cmdline()
                if words and Path(words[0].split()[0]).name == name:
                    found.append(process)
        return found

    def kill(self, name: str) -> int:
        """Send SIGKILL to the processes of this name, and return their number."""
        found = self.named(name)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(found)

    def kill_all(self) -> None:
        """End the host as a loss of power would."""
        give_up = time.monotonic() + _GONE_SECONDS
        while running := self.processes():
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(running, timeout=1.0)
            if time.monotonic() > give_up:
                raise AssertionError(f"{self.name}: {running} cannot be killed")

    def cut(self) -> None:
        """Cut the host's link: no packet gets through, and no process is told."""
        _run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """Restore the host's link."""
        _run("ip", "link", "set", self.link, "up")


@dataclass(kw_only=True, slots=True)
class Network:
    """Hosts on one bridge. `ray_address` is where raylets find the head."""

    name: str
    number: int
    folder: Path
    variables: dict[str, str]
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def own_address(self) -> str:
        """The address of the machine itself, as hosts see it."""
        return f"10.213.{self.number}.254"

    @property
    def ray_address(self) -> str:
        return f"10.213.{self.number}.1:{HEAD_PORT}"

    def add(self, name: str) -> Host:
        """Add a host. The host "h1" has the address that ends in 1."""
        index = int(name.removeprefix("h"))
        folder = self.folder / name
        folder.mkdir()
        host = Host(
            name=name,
            namespace=f"{self.name}-{name}",
            address=f"10.213.{self.number}.{index}",
            folder=folder,
            link=f"{self.name}{name}",
            environment={**_environment(), **self.variables},
        )
        self.hosts[name] = host
        _run("ip", "netns", "add", host.namespace)
        # This resolver refuses at once: the hosts have no names, and no process should wait for them.
        _etc(host).mkdir(parents=True)
        (_etc(host) / "resolv.conf").write_text("nameserver 127.0.0.1\n", encoding="ascii")
        _run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _run("ip", "link", "set", host.link, "master", self.name, "up")
        inside = ("ip", "-n", host.namespace)
        _run(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "link", "set", "eth0", "up")
        # Ray finds a host's own address by asking for the route to some address of the internet.
        _run(*inside, "route", "add", "default", "via", self.own_address)
        return host

    def start_head(self, host: Host, num_cpus: int, resources: str) -> None:
        """Start Ray's head on this host, at `ray_address`. Returns when the head has started."""
        self._start_ray(
            host, "--head", f"--port={HEAD_PORT}", "--include-dashboard=false", *_claims(num_cpus, resources)
        )

    def start_raylet(self, host: Host, num_cpus: int, resources: str) -> None:
        """Start a raylet on this host. Returns when it has started and settled."""
        time.sleep(_SETTLE_SECONDS)
        self._start_ray(host, f"--address={self.ray_address}", *_claims(num_cpus, resources))

    def _start_ray(self, host: Host, *options: str) -> None:
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={host.address}"]
        words += [
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            "--include-log-monitor=false",
            *options,
        ]
        with contextlib.ExitStack() as stack:
            # Real hosts have their own cores. Ray waits 15 s for its agents and 30 s for its raylet, and no
            # option makes these times longer.
            for other in self.hosts.values():
                if other is not host:
                    stack.enter_context(_in_background(other.processes))
            # The threads of this process read streams. A new process inherits the niceness of the thread that
            # starts it.
            stack.enter_context(_in_background(lambda: [psutil.Process()]))
            process = host.start("ray", *words)
            status = process.wait(_START_SECONDS)
        if status != 0:
            raise AssertionError(f"ray does not start on {host.name}:\n{host.output('ray')[-3000:]}")


@contextlib.contextmanager
def network(folder: Path, variables: dict[str, str]) -> Iterator[Network]:
    """Make a bridge without hosts, and remove everything on it at the end.

    `variables` are set on every host.
    """
    name, number = f"ph{secrets.token_hex(2)}", secrets.randbelow(254) + 1
    net = Network(name=name, number=number, folder=folder, variables=variables)
    _run("ip", "link", "add", name, "type", "bridge")
    try:
        _run("ip", "addr", "add", f"{net.own_address}/24", "dev", name)
        _run("ip", "link", "set", name, "up")
        yield net
    finally:
        _take_down(net)


def _take_down(net: Network) -> None:
    faults = []
    for host in net.hosts.values():
        try:
            host.kill_all()
        except (AssertionError, subprocess.SubprocessError) as error:
            faults.append(str(error))
        faults += [fault for fault in (_try("ip", "netns", "del", host.namespace),) if fault]
        _try("ip", "link", "del", host.link)  # Gone with its namespace, as a rule.
        shutil.rmtree(_etc(host), ignore_errors=True)
    faults += [fault for fault in (_try("ip", "link", "del", net.name),) if fault]
    assert not faults, faults


def _etc(host: Host) -> Path:
    """Return the folder whose files `ip netns exec` shows in place of those in /etc."""
    return Path("/etc/netns") / host.namespace


@contextlib.contextmanager
def _in_background(processes: Callable[[], Sequence[psutil.Process]]) -> Iterator[None]:
    """Lower the priority of these processes; at the end, restore it for those that exist then."""
    _set_niceness(processes(), _BACKGROUND_NICENESS)
    try:
        yield
    finally:
        _set_niceness(processes(), 0)


def _set_niceness(processes: Sequence[psutil.Process], niceness: int) -> None:
    """Set the niceness of all threads except the calling one, and of the processes' sessions.

    If the kernel schedules sessions as groups, the niceness of a session counts most.
    """
    for process in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text(str(niceness), encoding="ascii")
        with contextlib.suppress(psutil.NoSuchProcess):
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    if thread.id != threading.get_native_id():
                        os.setpriority(os.PRIO_PROCESS, thread.id, niceness)


def _claims(num_cpus: int, resources: str) -> tuple[str, str]:
    return f"--num-cpus={num_cpus}", f"--resources={resources}"


def _environment() -> dict[str, str]:
    """Return what an operator sets on every node: the ConfigMap's variables, without authentication."""
    manifest = yaml.safe_load((ROOT / "k8s/base/configmap.yaml").read_text(encoding="utf-8"))
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PHIMOE_"))
    }
    return {
        **inherited,
        **manifest["data"],
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": "/tmp",
    }


def _run(*words: str) -> None:
    fault = _try(*words)
    assert fault is None, fault


def _try(*words: str) -> str | None:
    """Run a command. Return its error, or None."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    return None if done.returncode == 0 else f"{shlex.join(words)}: {done.stderr.strip()}"


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Send SIGTERM, and SIGKILL if the process does not end in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_COMMAND_SECONDS)
