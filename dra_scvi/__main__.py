"""``python -m dra_scvi``, the same program as ``dra-scvi``."""

from __future__ import annotations

from dra_scvi.cli import main

if __name__ == "__main__":
    main()
