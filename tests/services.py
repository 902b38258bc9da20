"""Services that run for the tests: SLURM, Ray, PostgreSQL, an MLflow server; on loopback alone.

Each is a context manager that starts real daemons in a folder of their own, waits until they
answer and leaves no process behind. A fixture skips where the programs are not installed.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from expkit.tracking.server import WITHOUT_JOBS

START_S = 60.0
"""A service that does not answer by then is broken."""
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
"""Debian installs daemons in folders that are on root's path only."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str, place: Path) -> None:
    """Return once `ready()` is true; else fail with what the service wrote to its log files."""
    end = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in place.glob("*.log"))
            raise TimeoutError(f"{what} does not answer after {START_S:.0f} s\n{logs}")
        time.sleep(0.1)


def succeeds(*command: str, env: Mapping[str, str] | None = None) -> bool:
    return subprocess.run(command, env=env, capture_output=True, timeout=START_S).returncode == 0


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """Make a folder for sockets: of a short name, and one that other users may pass through."""
    place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def daemon(
    *command: str,
    place: Path,
    env: Mapping[str, str],
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that dies with pytest; at the block's end it is told to end and waited for."""
    who = [f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    with (place / f"{Path(command[0]).name}.log").open("a") as log:
        process = subprocess.Popen(
            ["setpriv", *who, "--pdeathsig=TERM", "--", *command],
            cwd=place,
            env=env,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            process.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


@contextmanager
def nothing_left(entry: str) -> Iterator[None]:
    """At the block's end, kill every process that has this entry in its environment."""
    try:
        yield
    finally:
        while found := marked(entry):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def marked(entry: str) -> list[int]:
    """Return the processes that have this entry in their environment, without pytest itself."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it ended meanwhile
            if entry.encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def _absent(what: str) -> NoReturn:
    """Skip the test, or fail it if all services are required."""
    if os.environ.get("EXPKIT_TEST_SERVICES") == "all":
        pytest.fail(f"not installed: {what}")
    pytest.skip(f"not installed: {what}")


def need(*programs: str, packages: tuple[str, ...] = ()) -> None:
    """Skip the test where one of these is not installed."""
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    missing += [package for package in packages if not find_spec(package)]
    if missing:
        _absent(", ".join(missing))


# SLURM

SLURM_CONF = """
ClusterName=expkit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_min_interval=0
KillWait=2
MinJobAge=2
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster of one node, without accounting.

    Attributes:
        env: what a process needs in its environment to submit jobs.
    """

    env: Mapping[str, str]

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        env = {**os.environ, **self.env}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()


@contextmanager
def run_slurm() -> Iterator[Slurm]:
    with ExitStack() as stack:
        place = stack.enter_context(folder("slurm"))
        host = socket.gethostname().split(".")[0]
        (place / "state").mkdir()
        (place / "spool").mkdir()
        (place / "key").write_bytes(secrets.token_bytes(128))
        (place / "key").chmod(0o600)
        settings = SLURM_CONF.format(
            place=place,
            host=host,
            user=getpass.getuser(),
            port=free_port(),
            node_port=free_port(),
            cpus=len(os.sched_getaffinity(0)),
        )
        (place / "slurm.conf").write_text(settings)
        slurm = Slurm({"SLURM_CONF": str(place / "slurm.conf")})
        env = {**os.environ, **slurm.env, "PATH": PATH}
        stack.enter_context(nothing_left(f"SLURM_CONF={place}/slurm.conf"))
        files = {"socket": "munge.socket", "key-file": "key", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "seed"}
        options = [f"--{option}={place / file}" for option, file in files.items()]
        stack.enter_context(daemon("munged", "--foreground", *options, place=place, env=env))
        wait_until((place / "munge.socket").exists, "munged", place)
        stack.enter_context(daemon("slurmctld", "-D", place=place, env=env))
        stack.enter_context(daemon("slurmd", "-D", "-N", host, place=place, env=env))
        wait_until(lambda: succeeds("srun", "true", env=env), "SLURM", place)
        yield slurm
        slurm.ask("scancel", f"--user={getpass.getuser()}")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """SLURM on this machine."""
    programs = "slurmctld", "slurmd", "munged", "sbatch", "setpriv"
    need(*programs, packages=("submitit", "hydra_plugins.hydra_submitit_launcher"))
    with run_slurm() as cluster:
        yield cluster


# Ray

RAY_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "resources": {"cell": 1}, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(**node)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(second, allow_graceful=False)
    print("removed", flush=True)
    second = cluster.add_node(**node)
"""


@dataclass(frozen=True)
class Ray:
    """A cluster of two nodes, each with one CPU and the resource `cell: 1`.

    Attributes:
        env: what a process needs in its environment to connect.
        address: host and port.
    """

    env: Mapping[str, str]
    address: str
    _cluster: subprocess.Popen[str] = field(repr=False)
    _log: Path = field(repr=False)

    def kill_a_node(self) -> None:
        """Kill the node that is not the head, and all that runs on it; a new one replaces it."""
        assert self._cluster.stdin is not None
        before = self._removed()
        self._cluster.stdin.write("kill\n")
        self._cluster.stdin.flush()
        wait_until(lambda: self._removed() > before, "Ray", self._log.parent)

    def _removed(self) -> int:
        return self._log.read_text().count("removed")


@contextmanager
def run_ray() -> Iterator[Ray]:
    with folder("ray") as place:
        env = {
            "RAY_TMPDIR": str(place),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "500",  # a dead node is noticed after 3 s, not 15
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux it means: loopback alone
        }
        script, log = place / "cluster.py", place / f"{Path(sys.executable).name}.log"
        script.write_text(RAY_CLUSTER)
        command = sys.executable, str(script)
        with (
            nothing_left(f"RAY_TMPDIR={place}"),
            daemon(*command, place=place, env={**os.environ, **env}) as cluster,
        ):
            wait_until(lambda: "\n" in log.read_text(), "Ray", place)
            yield Ray(env, log.read_text().splitlines()[-1], cluster, log)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Ray]:
    """Ray on this machine."""
    need("setpriv", packages=("ray", "hydra_plugins.hydra_ray_launcher"))
    with run_ray() as cluster:
        yield cluster


# PostgreSQL and MLflow's server


@dataclass(frozen=True)
class Postgres:
    """A server of databases; `env` is what its client programs read."""

    env: Mapping[str, str]
    programs: Path

    def database(self, name: str, template: str = "template0") -> str:
        """Make a database that is empty, or a copy; its address, as SQLAlchemy writes it."""
        env = {**os.environ, **self.env}
        create = [str(self.programs / "createdb"), f"--template={template}", name]
        subprocess.run(create, env=env, check=True)
        server = "{PGUSER}:{PGPASSWORD}@{PGHOST}:{PGPORT}".format_map(self.env)
        return f"postgresql+psycopg2://{server}/{name}"


def postgres_programs() -> Path | None:
    """Where Debian keeps the newest server's programs, which are not on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def run_postgres(programs: Path) -> Iterator[Postgres]:
    user = "postgres" if os.geteuid() == 0 else None  # initdb refuses root
    with folder("postgres") as place:
        names = ("127.0.0.1", str(free_port()), "mlflow", secrets.token_hex(16))
        env = dict(zip(("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"), names, strict=True))
        (place / "password").write_text(env["PGPASSWORD"])
        if user:
            shutil.chown(place, user, user)
            shutil.chown(place / "password", user, user)
        surroundings = {"PATH": PATH, "LC_ALL": "C.UTF-8", "PGDATA": str(place / "data")}
        begin = ["--username=mlflow", "--auth=scram-sha-256", f"--pwfile={place}/password"]
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [f"--{key}={value}" for key, value in settings.items()]
        init, server = str(programs / "initdb"), str(programs / "postgres")
        with daemon(init, *begin, place=place, env=surroundings, user=user) as process:
            assert process.wait(START_S) == 0, (place / "initdb.log").read_text()
        command = server, "-p", env["PGPORT"], *options
        stop = signal.SIGINT  # SIGTERM would wait for its clients
        with daemon(*command, place=place, env=surroundings, user=user, stop=stop):
            answers = [str(programs / "pg_isready"), "--quiet"]
            wait_until(lambda: succeeds(*answers, env=env), "PostgreSQL", place)
            yield Postgres(env, programs)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on this machine."""
    need("setpriv", packages=("psycopg2",))
    programs = postgres_programs()
    if programs is None:
        _absent("postgresql")
    with run_postgres(programs) as server:
        yield server


@dataclass(frozen=True)
class TrackingServer:
    """MLflow's server, by its address, and the database behind it."""

    address: str
    database: str


@contextmanager
def run_tracking_server(database: str, port: int) -> Iterator[TrackingServer]:
    """Start MLflow's server, without the processes that wait for jobs."""
    with folder("mlflow") as place:
        options = {
            "backend-store-uri": database,
            "artifacts-destination": place / "artifacts",
            "host": "127.0.0.1",
            "port": port,
            "workers": 1,
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        env = {**os.environ, **WITHOUT_JOBS, "TMPDIR": str(place)}
        command = sys.executable, "-m", "mlflow", "server", *words
        with nothing_left(f"TMPDIR={place}"), daemon(*command, place=place, env=env):
            wait_until(lambda: listens(port), "MLflow's server", place)
            yield TrackingServer(f"http://127.0.0.1:{port}", database)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def mlflow_template(postgres: Postgres) -> str:
    """The name of a database that MLflow has set up, which takes it some 70 migrations."""
    uri = postgres.database("template_of_mlflow")
    words = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1])"
    subprocess.run([sys.executable, "-c", words, uri], check=True, timeout=START_S)
    return "template_of_mlflow"


@pytest.fixture
def tracking_server(postgres: Postgres, mlflow_template: str) -> Iterator[TrackingServer]:
    """MLflow's server on a database of PostgreSQL without any run."""
    database = postgres.database(f"mlflow_{secrets.token_hex(4)}", mlflow_template)
    with run_tracking_server(database, free_port()) as server:
        yield server
