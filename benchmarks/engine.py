"""How fast the engine is: published sizes with random weights on a GPU, tiny ones on a CPU, beside a plain loop.

    python benchmarks/engine.py --quick
    python benchmarks/engine.py --json benchmarks/results/engine-gpu.json --profile trace.json

The same as `arvid bench engine`, with its options.
"""

from __future__ import annotations

import sys

from arvid.cli.main import app

if __name__ == "__main__":
    app(args=["bench", "engine", *sys.argv[1:]])
