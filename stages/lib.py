"""What ``python stages/x.py`` imports in the place of lib, since it looks beside the script first."""

import sys
from pathlib import Path

sys.exit(f"error: stages run as modules: python -m stages.{' '.join([Path(sys.argv[0]).stem, *sys.argv[1:]])}")
