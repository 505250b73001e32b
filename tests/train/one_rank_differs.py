"""`la4vla.train` with another override on each rank.

python one_rank_differs.py CONFIG OVERRIDE_OF_RANK_0 OVERRIDE_OF_RANK_1 ...
"""

import os
import sys

from la4vla.train.__main__ import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[1], sys.argv[2 + int(os.environ["RANK"])]]))
