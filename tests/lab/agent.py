#!/usr/bin/python3
"""Runs in a guest, as its only way in: commands come over a serial line, a JSON object a line, and so do the results.

A request has ``command`` (for bash), ``input`` (base64) and ``timeout`` (seconds). The answer has ``status``,
``stdout`` and ``stderr`` (base64); the status is None where the time was over. The first line is ``{"ready": true}``.
"""

import base64
import json
import os
import subprocess
import sys
import tty


def carry_out(request: dict[str, object]) -> dict[str, object]:
    """Run one command to its end, in a session of its own."""
    data, timeout = base64.b64decode(str(request["input"])), float(str(request["timeout"]))
    with subprocess.Popen(
        ["/bin/bash", "-c", str(request["command"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/root",
        start_new_session=True,
    ) as process:
        status: int | None
        try:
            stdout, stderr = process.communicate(data, timeout)
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            status = None
    texts = {"stdout": stdout, "stderr": stderr}
    return {"status": status, **{name: base64.b64encode(data).decode() for name, data in texts.items()}}


def main() -> None:
    """Serve the serial line that is named on the command line, until the guest ends."""
    line = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    with open(line, "rb", closefd=False) as requests, open(line, "wb", closefd=False) as answers:
        answers.write(b'{"ready": true}\n')
        answers.flush()
        for request in requests:
            answers.write(json.dumps(carry_out(json.loads(request))).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main()
