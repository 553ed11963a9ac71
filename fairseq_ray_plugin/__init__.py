"""Elastic, fault-tolerant fairseq training on Ray; a fairseq plugin (--user-dir)."""

import sys

__version__ = "0.1.0"

if "fairseq.options" in sys.modules:
    # imported by fairseq itself, as --user-dir: its options must know ours before it parses.
    # The rooms that know nothing of fairseq can be imported without it.
    from fairseq_ray_plugin.launch import register

    register()
