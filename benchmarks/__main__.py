"""``make bench``: every benchmark in its small form, one after another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SMALL = {
    "memory": ["--sides", "1024", "2048", "4096"],
    "reprojection": ["--side", "1500"],
}


def main() -> None:
    """Run them as programs of their own, so that one's memory is not another's."""
    for name, arguments in SMALL.items():
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py")), *arguments], check=True)


if __name__ == "__main__":
    main()
