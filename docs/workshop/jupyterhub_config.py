"""A JupyterHub for a room: `make hub` starts it, docs/instructor.md explains it. All is set by environment variables.

Everybody logs in with a name of their own and one shared password. All seats run as the account that starts the hub: they
are kept apart from accidents, not from each other. For people who must not read each other's files use another spawner.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("WORKSHOP_FOLDER") or REPOSITORY / "runs" / "workshop").resolve()
# such as "0,1,2,3"; empty: seats compute on the CPU
GPUS = os.environ.get("WORKSHOP_GPUS", "").replace(",", " ").split()
SEATS = int(os.environ.get("WORKSHOP_SEATS") or max(1, len(GPUS)))
CORES = max(1, psutil.cpu_count() // SEATS)
MEMORY = int(float(os.environ.get("WORKSHOP_SEAT_GB") or 0.9 * psutil.virtual_memory().total / 1e9 / SEATS) * 1e9)
IDLE_MINUTES = float(os.environ.get("WORKSHOP_IDLE_MINUTES") or 60)
PASSWORD = os.environ.get("WORKSHOP_PASSWORD", "")
SOLUTIONS = bool(os.environ.get("WORKSHOP_SOLUTIONS"))  # whether seats get notebooks/solutions
GIT = ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY)]

if os.geteuid() == 0 and not any("--allow-root" in argument for argument in sys.argv):
    sys.exit(
        "error: the hub does not run as root, or everybody in the room would be root: start it from an ordinary account"
    )
if len(PASSWORD) < 8:
    sys.exit(
        "error: set WORKSHOP_PASSWORD to at least eight characters; with it, anyone can run commands on this machine"
    )
if subprocess.run([*GIT, "rev-parse", "-q", "--verify", "HEAD"], capture_output=True).returncode:
    sys.exit(
        "error: seats get the committed files, and this folder is no git repository: clone the project and start there"
    )


def clean_tree(home):
    """Put the series into a seat as it is committed: without the outputs, the answers and the runs of whoever teaches."""
    parts = ["helpers", "notebooks", "docs/workshop/lab", *([] if SOLUTIONS else [":(exclude)notebooks/solutions"])]
    part = home.with_name(f".{home.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    committed = subprocess.run(
        [*GIT, "archive", "--format=tar", "HEAD", *parts], stdout=subprocess.PIPE, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", part], input=committed, check=True)
    for own in ("my_data", "runs"):
        (part / own).mkdir()
    part.rename(home)


def prepare_seat(spawner):
    """Give a seat its own copy of the series, its share of the cores, and one GPU."""
    seat = (spawner.user.id - 1) % SEATS  # users are numbered in the order of their first login
    home = FOLDER / "seats" / spawner.user.name
    if not home.is_dir():  # a copy of its own, so that nobody overwrites the notebooks or the runs of another
        clean_tree(home)
    spawner.notebook_dir = str(home)
    spawner.args = [*spawner.args, f"--LabApp.app_settings_dir={home}/docs/workshop/lab"]  # no news, long lines wrapped
    models = os.environ.get("MODELS_DIR") or str(REPOSITORY / "models")
    spawner.environment |= {"PYTHONPATH": str(home), "MODELS_DIR": models}
    spawner.environment |= {"PYTHONSTARTUP": str(home / "docs/workshop/lab/kernel_start.py")}
    spawner.environment |= {"OMP_NUM_THREADS": str(CORES), "HOME": str(home)}
    # one index for both vendors. Not ROCR_VISIBLE_DEVICES as well: HIP would count within what that leaves
    gpu = GPUS[seat % len(GPUS)] if GPUS else "-1"  # HIP ignores an empty value
    spawner.environment |= {"HIP_VISIBLE_DEVICES": gpu, "CUDA_VISIBLE_DEVICES": gpu}
    first = seat * CORES % psutil.cpu_count()
    limits = ["prlimit", f"--data={MEMORY}", "taskset", "--cpu-list", f"{first}-{first + CORES - 1}"]
    spawner.cmd = [*limits, str(Path(sys.executable).parent / "jupyterhub-singleuser")]


c = get_config()  # noqa: F821 - JupyterHub defines it
FOLDER.mkdir(parents=True, exist_ok=True)
c.JupyterHub.bind_url = os.environ.get("WORKSHOP_URL", "http://127.0.0.1:8000")
c.JupyterHub.db_url = f"sqlite:///{FOLDER}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(FOLDER / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(FOLDER / "proxy.pid")
c.JupyterHub.active_server_limit = SEATS

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = PASSWORD
c.Authenticator.allow_all = True
c.Authenticator.username_pattern = r"[a-z][a-z0-9-]{0,30}$"
c.JupyterHub.template_vars = {
    "announcement_login": "Username: your first name or any name of your own, in small letters and digits, the same one each time. "
    "Password: the one on the board."
}

c.JupyterHub.spawner_class = "simple"
c.Spawner.pre_spawn_hook = prepare_seat
c.Spawner.default_url = "/lab/tree/notebooks/00_setup_check.ipynb"
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
c.Spawner.env_keep = ["PATH", "LANG", "LD_LIBRARY_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE",
                      "TOKENIZERS_PARALLELISM", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"]  # fmt: skip
c.SimpleLocalProcessSpawner.home_dir_template = str(FOLDER / "seats" / "{username}")

seconds = int(60 * IDLE_MINUTES)
c.JupyterHub.services = [{
    "name": "idle-culler",
    "command": [sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={seconds}", f"--cull-every={max(1, min(60, seconds // 3))}"],
}]  # fmt: skip
c.JupyterHub.load_roles = [{
    "name": "idle-culler", "services": ["idle-culler"],
    "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
}]  # fmt: skip
