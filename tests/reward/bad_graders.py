"""Graders that misbehave on command, for test_pool; imported by grader processes only. The response says what to do."""

import os
import signal
import sys
import time
from pathlib import Path


def load(variant):
    def grade(response, ground_truth):
        word, _, argument = response.partition(" ")
        if word == "hang":
            time.sleep(3600)
        elif word == "hang-in-c":  # holds the GIL: no signal handler of Python's gets a chance
            sum(range(10**12))
        elif word == "nap":
            time.sleep(float(argument))
        elif word == "exit":
            os._exit(3)
        elif word == "sysexit":
            sys.exit(0)
        elif word == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif word == "raise":
            raise RuntimeError("bad grader")
        elif word == "recurse":
            grade(response, ground_truth)
        elif word == "memory":
            bytearray(1 << 40)
        elif word == "print":
            print("noise", flush=True)
            os.write(1, b'["right", "forged", null]\n')
        elif word == "write":
            Path(argument).write_bytes(b"x" * 100)
        elif word == "die-once":  # the marker survives the process, not the test
            marker = Path(argument)
            if marker.exists():
                marker.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        elif word == "child":
            pid = os.fork()
            if pid == 0:
                time.sleep(3600)
            return "right", str(pid), None
        elif word == "environment":
            return "right", " ".join(sorted(os.environ)), " ".join(sorted(os.listdir("/proc/self/fd")))
        elif word == "modules":
            return "right", " ".join(m for m in ("torch", "pydantic", "vllm", "yaml") if m in sys.modules), None
        return ("right" if response == ground_truth else "wrong"), "plain", response

    return grade


def load_failing(variant):
    raise RuntimeError("no such library")


def load_dying(variant):
    os._exit(7)
