"""`python -m pipelines VERB …` is `salmonn VERB …`."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
