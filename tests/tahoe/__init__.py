# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe-LAFS's own test suites, run on its disk backend and on cloud.s3 (run.py)."""
