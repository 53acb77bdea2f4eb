"""A container runtime whose engines are no descendants of its command, like podman's and docker's.

`run NAME ARGS...` starts the fake engine through a daemon and waits for its end; `stop NAME` and `pid NAME` act on it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ENGINE = Path(__file__).with_name("fake_engine.py")


def main() -> None:
    """Run one command."""
    verb, name, *arguments = sys.argv[1:]
    file = Path(os.environ["CONTAINERS"]) / name
    if verb == "run":
        if os.fork() == 0:  # the runtime's daemon, which init adopts
            os.setsid()
            kept = ("PATH", "CUDA_VISIBLE_DEVICES")
            environment = {k: v for k, v in os.environ.items() if k in kept}
            argv = [sys.executable, str(ENGINE), *arguments]
            engine = subprocess.Popen(argv, env=environment)
            file.with_suffix(".new").write_text(str(engine.pid))
            file.with_suffix(".new").rename(file)
            engine.wait()
            file.unlink()
            os._exit(0)
        while not file.exists():
            time.sleep(0.01)
        while file.exists():
            time.sleep(0.01)
    elif verb == "stop":
        os.kill(int(file.read_text()), signal.SIGTERM)
        while file.exists():
            time.sleep(0.01)
    else:
        print(file.read_text())


main()
