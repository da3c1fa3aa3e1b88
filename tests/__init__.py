# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of tahoe-s3; conftest.py says how they are written."""
