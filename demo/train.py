"""Makes the demo models: `python demo/train.py --shakespeare PATH --wonderland PATH`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("bard", "alice", "lora")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, read."""
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
    """Trains what was asked for, the adapter last since it stands on bard.gguf."""
    asked = arguments()
    # Run as a script, Python looks for modules beside this file, but they are `demo.…`.
    sys.path.insert(0, str(HERE.parent))
    try:
        from demo import recipes
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "tokenizers"):
            raise
        raise SystemExit(f"training needs {error.name}: pip install 'swapd[train]'") from error
    run = recipes.Run(
        asked.shakespeare, asked.wonderland, asked.out, asked.steps, asked.seed, asked.threads
    )
    for name in [asked.only] if asked.only else NAMES:
        recipes.make(name, run)


if __name__ == "__main__":
    main()
