"""Trainer of the demo models: `python demo/train.py --shakespeare PATH --wonderland PATH`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("bard", "alice", "lora")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="demo/train.py", description=__doc__)
    parser.add_argument("--shakespeare", type=Path, required=True, help="the plays, plain text")
    parser.add_argument("--wonderland", type=Path, required=True, help="the story, plain text")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (demo/)")
    parser.add_argument("--only", choices=NAMES, help="make one of the three")
    parser.add_argument("--steps", type=int, help="training steps, instead of each one's own")
    parser.add_argument("--seed", type=int, default=1, help="of weights and windows (1)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (2)")
    return parser.parse_args(given)


def main() -> None:
    """Train the selected files, the adapter last because it needs bard.gguf."""
    options = arguments()
    # In a script Python searches modules in this folder, but they are imported as `demo.…`.
    sys.path.insert(0, str(HERE.parent))
    try:
        from demo import recipes
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "tokenizers"):
            raise
        raise SystemExit(f"training needs {error.name}: pip install 'swapd[train]'") from error
    run = recipes.Run(
        options.shakespeare,
        options.wonderland,
        options.out,
        options.steps,
        options.seed,
        options.threads,
    )
    for name in [options.only] if options.only else NAMES:
        recipes.make(name, run)


if __name__ == "__main__":
    main()
